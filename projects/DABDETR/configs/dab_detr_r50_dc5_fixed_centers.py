"""DAB-DETR with dilated ResNet-50 and anchors whose centres do not move: the official settings."""

from sparse_detr.recipes import dab_detr, resnet

from ....configs.common.dino import training

backbone = resnet(50, num_maps=1, dilation=True)
model = dab_detr(backbone=backbone, anchor_start="uniform_centers", freeze_centers=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
