"""DINO with DAT-S, 12 epochs: the settings of the authors' code."""

from sparse_detr.recipes import dat, dino

from ....configs.common.dino import training

backbone = dat("small")
model = dino(backbone=backbone, shared_heads=True)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
