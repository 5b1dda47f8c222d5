"""PnP-DETR with dilated ResNet-101 and 100 pooled tokens, for 300 epochs."""

from sparse_detr.recipes import pnp_detr, resnet

from ....configs.common.detr import training

backbone = resnet(101, num_maps=1, dilation=True)
model = pnp_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=300, drop=200)
