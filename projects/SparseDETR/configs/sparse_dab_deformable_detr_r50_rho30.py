"""Sparse DETR's encoder in two-stage DAB-Deformable-DETR with ResNet-50, keeping 30 %."""

from sparse_detr.recipes import resnet, sparse_dab_deformable_detr

from ....configs.common.dino import EPOCH, dataloader, lr_multiplier, optimizer, train

model = sparse_dab_deformable_detr(backbone=resnet(50), keep_ratio=0.3)
train.max_iter, lr_multiplier.drop_at = 50 * EPOCH, [40 / 50]
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/sparse_dab_deformable_detr_r50_rho30"
