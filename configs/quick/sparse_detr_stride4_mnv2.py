"""A small Sparse DETR with a level of stride 4, for small objects: it refines few fine tokens and most coarse ones."""

from sparse_detr.recipes import mobilenet_v2, sparse_detr

from .trees import SIZES, training

model = sparse_detr(
    backbone=mobilenet_v2(strides=(4, 8, 16, 32)),
    num_classes=1,
    dropout=0.0,
    level_shares=[0.05, 0.15, 0.5, 1.0],
    **{**SIZES, "num_levels": 4},
)
dataloader, lr_multiplier, optimizer, train = training(__file__)
