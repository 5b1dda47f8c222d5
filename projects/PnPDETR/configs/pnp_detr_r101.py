"""PnP-DETR with ResNet-101 for 300 epochs."""

from sparse_detr.recipes import pnp_detr, resnet

from ....configs.common.detr import training

backbone = resnet(101, num_maps=1)
model = pnp_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=300, drop=200)
