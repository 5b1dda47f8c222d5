"""Focus-DETR with ResNet-50, 36 epochs."""

from sparse_detr.recipes import focus_detr, resnet

from ....configs.common.focus import training

backbone = resnet(50, freeze_at=1)
model = focus_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=36, drop=20)
