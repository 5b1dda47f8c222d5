"""Conditional DETR with dilated ResNet-101: the official settings."""

from sparse_detr.recipes import conditional_detr, resnet

from ....configs.common.detr import training

backbone = resnet(101, num_maps=1, dilation=True)
model = conditional_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
