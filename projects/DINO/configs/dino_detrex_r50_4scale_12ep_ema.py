"""DINO with ResNet-50, 12 epochs, averaged weights: the settings of detrex."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import EPOCH, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=resnet(50, freeze_at=1), position_temperature=10000, position_offset=-0.5)
train.max_iter, lr_multiplier.drop_at = 12 * EPOCH, [11 / 12]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.ema.enabled, train.ema.decay = True, 0.999
train.output_dir = "output/dino_detrex_r50_4scale_12ep_ema"
