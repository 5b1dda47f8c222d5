"""Dense twin of Sparse DETR with ResNet-50: refinement and the best encoder tokens as queries."""

from sparse_detr.recipes import deformable_detr_topk, resnet

from ....configs.common.coco import training

backbone = resnet(50)
model = deformable_detr_topk(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
