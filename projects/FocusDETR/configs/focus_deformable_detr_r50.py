"""Focus-DETR's encoder in two-stage Deformable DETR with ResNet-50, trained as Sparse DETR is."""

from sparse_detr.recipes import focus_deformable_detr, resnet

from ....configs.common.coco import training

backbone = resnet(50)
model = focus_deformable_detr(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
