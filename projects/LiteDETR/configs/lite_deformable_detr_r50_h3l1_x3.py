"""Lite Deformable DETR with ResNet-50, H3L1-(2+1)x3: refinement, and the best encoder tokens as queries."""

from sparse_detr.recipes import lite_deformable_detr, resnet

from ....configs.common.coco import training

backbone = resnet(50)
model = lite_deformable_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
