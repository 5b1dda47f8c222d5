"""Focus-DETR's encoder in two-stage Deformable DETR with ResNet-50, trained as Sparse DETR is."""

from sparse_detr.recipes import focus_deformable_detr, resnet

from ....configs.common.coco import dataloader, lr_multiplier, optimizer, train

model = focus_deformable_detr(backbone=resnet(50))
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/focus_deformable_detr_r50"
