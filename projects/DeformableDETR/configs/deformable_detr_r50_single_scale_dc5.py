"""Deformable DETR on C5 alone, dilated to stride 16."""

from sparse_detr.recipes import deformable_detr, resnet

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = deformable_detr(backbone=resnet(50, num_maps=1, dilation=True), num_levels=1)
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
dataloader.train.total_batch_size = 32
train.max_iter, train.eval_period, train.checkpointer.period = 184825, 3697, 3697
train.output_dir = "output/deformable_detr_r50_single_scale_dc5"
