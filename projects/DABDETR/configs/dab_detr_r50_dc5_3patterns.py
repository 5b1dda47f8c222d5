"""DAB-DETR with dilated ResNet-50 and three patterns: the official settings."""

from sparse_detr.recipes import dab_detr, resnet

from ....configs.common.dino import training

backbone = resnet(50, num_maps=1, dilation=True)
model = dab_detr(backbone=backbone, num_patterns=3)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
