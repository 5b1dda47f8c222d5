"""A small DINO for the sample data."""

from sparse_detr.recipes import dino, mobilenet_v2

from .trees import SIZES, training

model = dino(backbone=mobilenet_v2(), num_classes=1, **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
model.criterion.class_weight = 2.0  # Deformable DETR's: with DINO's 1, duplicates outlast so short a training
