"""Sparse DETR with ResNet-50, keeping 50 % of the encoder tokens."""

from sparse_detr.recipes import resnet, sparse_detr

from ....configs.common.coco import training

backbone = resnet(50)
model = sparse_detr(backbone=backbone, keep_ratio=0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
