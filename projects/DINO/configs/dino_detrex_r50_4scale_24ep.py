"""DINO with ResNet-50, 24 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=1)
model = dino(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=24, drop=20)
dataloader.train.dataset.filter_empty = False
