"""Anchor DETR with ResNet-50: the settings of detrex."""

from sparse_detr.recipes import anchor_detr, resnet

from ....configs.common.detrex import training

backbone = resnet(50, num_maps=1)
model = anchor_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
