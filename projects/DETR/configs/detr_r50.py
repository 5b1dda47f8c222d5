"""DETR with ResNet-50 for 500 epochs, as the published weights."""

from sparse_detr.recipes import detr, resnet

from ....configs.common.detr import training

backbone = resnet(50, num_maps=1)
model = detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=500, drop=400)
