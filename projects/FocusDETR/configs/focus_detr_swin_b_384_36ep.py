"""Focus-DETR with Swin-B, 36 epochs."""

from sparse_detr.recipes import focus_detr, swin

from ....configs.common.focus import training

backbone = swin("base", image_size=384)
model = focus_detr(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=36, drop=30)
