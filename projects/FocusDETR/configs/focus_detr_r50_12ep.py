"""Focus-DETR with ResNet-50, 12 epochs."""

from sparse_detr.recipes import focus_detr, resnet

from ....configs.common.focus import training

backbone = resnet(50, freeze_at=1)
model = focus_detr(backbone=backbone, position_temperature=10000, position_offset=-0.5)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=12, drop=11)
