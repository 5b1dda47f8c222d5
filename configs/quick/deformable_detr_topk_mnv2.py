"""A small two-stage Deformable DETR for the sample data: like `sparse_detr_mnv2`, but every token is refined."""

from sparse_detr.recipes import deformable_detr_topk, mobilenet_v2

from .trees import SIZES, training

model = deformable_detr_topk(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, encoder_auxiliary_loss=True, **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
