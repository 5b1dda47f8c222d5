"""DINO with Swin-T, 12 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, swin

from ....configs.common.detrex import training

backbone = swin("tiny")
model = dino(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
