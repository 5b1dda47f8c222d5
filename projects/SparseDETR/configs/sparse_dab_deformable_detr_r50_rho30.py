"""Sparse DETR's encoder in two-stage DAB-Deformable-DETR with ResNet-50, keeping 30 %."""

from sparse_detr.recipes import resnet, sparse_dab_deformable_detr

from ....configs.common.dino import training

backbone = resnet(50)
model = sparse_dab_deformable_detr(backbone=backbone, keep_ratio=0.3)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
