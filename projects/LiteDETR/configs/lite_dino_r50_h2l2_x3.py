"""Lite DINO with ResNet-50, H2L2-(2+1)x3: the official settings, 36 epochs."""

from sparse_detr.recipes import lite_dino, resnet

from ....configs.common.dino import training

backbone = resnet(50)
model = lite_dino(backbone=backbone, high_levels=2, shared_heads=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=36, drop=30)
