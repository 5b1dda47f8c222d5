"""Sparse DETR with Swin-T, keeping 50 % of the encoder tokens."""

from sparse_detr.recipes import sparse_detr, swin_tiny

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = sparse_detr(backbone=swin_tiny(), keep_ratio=0.5)
train.init_checkpoint = "swin_tiny_imagenet.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/sparse_detr_swin_t_rho50"
