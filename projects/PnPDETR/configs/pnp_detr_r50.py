"""PnP-DETR with ResNet-50 for 300 epochs, the default of the public code."""

from sparse_detr.recipes import pnp_detr, resnet

from ....configs.common.detr import training

backbone = resnet(50, num_maps=1)
model = pnp_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=300, drop=200)
