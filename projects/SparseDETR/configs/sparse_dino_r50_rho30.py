"""Sparse DETR's encoder in DINO with ResNet-50, keeping 30 %: trained as `focus_detr_r50_36ep`, its rival."""

from sparse_detr.recipes import resnet, sparse_dino

from ....configs.common.focus import EPOCH, dataloader, lr_multiplier, optimizer, train

model = sparse_dino(backbone=resnet(50, freeze_at=1), keep_ratio=0.3)
train.max_iter, lr_multiplier.drop_at = 36 * EPOCH, [20 / 36]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/sparse_dino_r50_rho30"
