"""Anchor DETR with dilated ResNet-101."""

from sparse_detr.recipes import anchor_detr, resnet

from ....configs.common.anchor_detr import training

backbone = resnet(101, num_maps=1, dilation=True)
model = anchor_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
