"""DINO with Swin-L and four levels, 12 epochs: the official settings."""

from sparse_detr.recipes import dino, swin

from ....configs.common.dino import training

backbone = swin("large", image_size=384)
model = dino(backbone=backbone, shared_heads=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
