"""A small DINO with Sparse DETR's encoder for the sample data."""

from sparse_detr.recipes import mobilenet_v2, sparse_dino

from .trees import SIZES, dataloader, lr_multiplier, optimizer, train

model = sparse_dino(backbone=mobilenet_v2(), num_classes=1, **SIZES)
model.criterion.class_weight = 2.0  # Deformable DETR's: with DINO's 1, duplicates outlast so short a training
train.output_dir = "output/sparse_dino_mnv2"
