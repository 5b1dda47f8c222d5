"""Efficient DETR with ResNet-50."""

from sparse_detr.recipes import efficient_detr, resnet

from ....configs.common.efficient_detr import training

backbone = resnet(50)
model = efficient_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
