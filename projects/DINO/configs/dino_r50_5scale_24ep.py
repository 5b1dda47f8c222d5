"""DINO with ResNet-50 and five levels, 24 epochs: the official settings."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.dino import training

backbone = resnet(50, num_maps=4)
model = dino(backbone=backbone, shared_heads=True, num_levels=5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=24, drop=20)
