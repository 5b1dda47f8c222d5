"""Sparse DETR with Swin-T, keeping 50 % of the encoder tokens."""

from sparse_detr.recipes import sparse_detr, swin_tiny

from ....configs.common.coco import training

backbone = swin_tiny()
model = sparse_detr(backbone=backbone, keep_ratio=0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
