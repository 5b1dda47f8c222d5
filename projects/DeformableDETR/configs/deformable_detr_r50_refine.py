"""Deformable DETR with iterative bounding box refinement."""

from sparse_detr.recipes import deformable_detr, resnet

from ....configs.common.deformable_detr import training

backbone = resnet(50)
model = deformable_detr(backbone=backbone, box_refinement=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
