"""DINO with ResNet-50, 12 epochs, averaged weights: the settings of detrex."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=1)
model = dino(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
train.ema.enabled, train.ema.decay = True, 0.999
