"""Sparse DETR with ResNet-50, keeping 50 % of the encoder tokens."""

from sparse_detr.recipes import resnet, sparse_detr

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = sparse_detr(backbone=resnet(50), keep_ratio=0.5)
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/sparse_detr_r50_rho50"
