"""DINO with ResNet-50 and four levels, 36 epochs: the official settings."""

from sparse_detr.recipes import dino, resnet

from ....configs.common.dino import training

backbone = resnet(50)
model = dino(backbone=backbone, shared_heads=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=36, drop=30)
