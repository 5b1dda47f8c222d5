"""Efficient DETR with ResNet-50, the larger model: 300 queries, and as many encoder layers as Deformable DETR."""

from sparse_detr.recipes import efficient_detr, resnet

from ....configs.common.efficient_detr import training

backbone = resnet(50)
model = efficient_detr(backbone=backbone, encoder_layers=6, num_queries=300)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
