"""A small Focus-DETR for the sample data."""

from sparse_detr.recipes import focus_detr, mobilenet_v2

from .trees import SIZES, training

model = focus_detr(backbone=mobilenet_v2(), num_classes=1, num_objects=100, **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
model.criterion.class_weight = (
    2.0  # as in Deformable DETR: with DINO's 1.0, duplicates remain after so short a training
)
