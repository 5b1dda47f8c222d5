"""Deformable DETR with Swin-T, as Sparse DETR compares with it."""

from sparse_detr.recipes import deformable_detr, swin_tiny

from ....configs.common.coco import training

backbone = swin_tiny()
model = deformable_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
