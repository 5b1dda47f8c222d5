"""Deformable DETR on C5 alone."""

from sparse_detr.recipes import deformable_detr, resnet

from ....configs.common.deformable_detr import training

backbone = resnet(50, num_maps=1)
model = deformable_detr(backbone=backbone, num_levels=1)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
