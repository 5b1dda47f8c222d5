"""Dense twin of Sparse DETR with Swin-T: refinement and the best encoder tokens as queries."""

from sparse_detr.recipes import efficient_detr, swin_tiny

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = efficient_detr(backbone=swin_tiny())
train.init_checkpoint = "swin_tiny_imagenet.pth"  # made by `sparse-detr convert`, see the README
train.output_dir = "output/efficient_detr_swin_t"
