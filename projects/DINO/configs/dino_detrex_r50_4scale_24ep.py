"""DINO with ResNet-50, 24 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=resnet(50, freeze_at=1))
train.max_iter, lr_multiplier.drop_at = 24 * EPOCH, [20 / 24]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
dataloader.train.dataset.filter_empty = False
train.output_dir = "output/dino_detrex_r50_4scale_24ep"
