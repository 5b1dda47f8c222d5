"""DINO with Swin-B, 12 epochs: the settings of detrex."""

from sparse_detr.recipes import dino, swin

from ....configs.common.detrex import training

backbone = swin("base", image_size=384, pretraining="imagenet22kto1k")
model = dino(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
