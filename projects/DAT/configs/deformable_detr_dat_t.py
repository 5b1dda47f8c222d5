"""Deformable DETR with DAT-T."""

from sparse_detr.recipes import dat, deformable_detr

from ....configs.common.coco import training

backbone = dat("tiny")
model = deformable_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
