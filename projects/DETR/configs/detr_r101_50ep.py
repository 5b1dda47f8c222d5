"""DETR with ResNet-101 for 50 epochs, as the authors of Conditional DETR trained it."""

from sparse_detr.recipes import detr, resnet

from ....configs.common.detr import training

backbone = resnet(101, num_maps=1)
model = detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=50, drop=40)
