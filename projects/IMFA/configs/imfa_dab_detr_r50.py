"""IMFA on DAB-DETR with ResNet-50: the official settings."""

from sparse_detr.recipes import imfa_dab_detr, resnet

from ....configs.common.dino import training

backbone = resnet(50, num_maps=4)
model = imfa_dab_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
