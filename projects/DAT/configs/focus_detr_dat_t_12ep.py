"""Focus-DETR with DAT-T, 12 epochs."""

from sparse_detr.recipes import dat, focus_detr

from ....configs.common.focus import training

backbone = dat("tiny")
model = focus_detr(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
