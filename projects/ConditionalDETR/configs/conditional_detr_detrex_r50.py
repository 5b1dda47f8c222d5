"""Conditional DETR with ResNet-50: the settings of detrex."""

from sparse_detr.recipes import conditional_detr, resnet

from ....configs.common.detrex import training

backbone = resnet(50, freeze_at=1, num_maps=1)
model = conditional_detr(backbone=backbone, num_detections=300)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
