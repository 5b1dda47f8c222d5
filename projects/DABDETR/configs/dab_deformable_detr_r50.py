"""DAB-Deformable-DETR with ResNet-50: the official settings."""

from sparse_detr.recipes import dab_deformable_detr, resnet

from ....configs.common.dino import training

backbone = resnet(50)
model = dab_deformable_detr(backbone=backbone, anchor_start="normal")
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
