"""Deformable DETR with Swin-T, as Sparse DETR compares with it."""

from sparse_detr.recipes import deformable_detr, swin_tiny

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = deformable_detr(backbone=swin_tiny())
train.init_checkpoint = "swin_tiny_imagenet.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/deformable_detr_swin_t"
