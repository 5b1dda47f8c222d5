"""DINO with ResNet-101, 12 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=resnet(101, freeze_at=1), position_temperature=10000, position_offset=-0.5)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-101.pkl"
train.output_dir = "output/dino_detrex_r101_4scale_12ep"
