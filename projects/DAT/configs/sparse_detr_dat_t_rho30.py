"""Sparse DETR with DAT-T, keeping 30 % of the encoder tokens."""

from sparse_detr.recipes import dat, sparse_detr

from ....configs.common.coco import training

backbone = dat("tiny")
model = sparse_detr(backbone=backbone, keep_ratio=0.3)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
