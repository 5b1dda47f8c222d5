"""Dense twin of Sparse DETR with Swin-T: refinement and the best encoder tokens as queries."""

from sparse_detr.recipes import deformable_detr_topk, swin_tiny

from ....configs.common.coco import training

backbone = swin_tiny()
model = deformable_detr_topk(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
