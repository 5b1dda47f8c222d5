"""Dense twin of Sparse DETR with ResNet-50: refinement and the best encoder tokens as queries."""

from sparse_detr.recipes import efficient_detr, resnet

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = efficient_detr(backbone=resnet(50))
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/efficient_detr_r50"
