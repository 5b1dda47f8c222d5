"""A small Lite DINO for the sample data: layer 1 refines two coarse levels of three, layer 2 all tokens."""

from sparse_detr.recipes import lite_dino, mobilenet_v2

from .trees import SIZES, training

model = lite_dino(backbone=mobilenet_v2(), num_classes=1, high_levels=2, blocks=1, **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
model.criterion.class_weight = (
    2.0  # as in Deformable DETR: with DINO's 1.0, duplicates remain after so short a training
)
