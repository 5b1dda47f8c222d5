"""Sparse DETR's encoder in DINO with ResNet-50, keeping 30 %: trained as `focus_detr_r50_36ep`, its rival."""

from sparse_detr.recipes import resnet, sparse_dino

from ....configs.common.focus import training

backbone = resnet(50, freeze_at=1)
model = sparse_dino(backbone=backbone, keep_ratio=0.3)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone, epochs=36, drop=20)
