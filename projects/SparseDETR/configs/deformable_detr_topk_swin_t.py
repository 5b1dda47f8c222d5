"""Dense twin of Sparse DETR with Swin-T: refinement and the best encoder tokens as queries."""

from sparse_detr.recipes import efficient_detr as deformable_detr_topk
from sparse_detr.recipes import swin_tiny

from ....configs.common.coco import training

backbone = swin_tiny()
model = deformable_detr_topk(backbone=backbone)
dataloader, lr_multiplier, optimizer, train = training(__file__, backbone)
