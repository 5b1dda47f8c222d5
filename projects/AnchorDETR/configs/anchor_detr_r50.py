"""Anchor DETR with ResNet-50."""

from sparse_detr.recipes import anchor_detr, resnet

from ....configs.common.anchor_detr import training

backbone = resnet(50, num_maps=1)
model = anchor_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
