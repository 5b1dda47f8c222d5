"""A small DINO for the sample data."""

from sparse_detr.recipes import dino, mobilenet_v2

from .trees import SIZES, dataloader, lr_multiplier, optimizer, train

model = dino(backbone=mobilenet_v2(), num_classes=1, **SIZES)
train.output_dir = "output/dino_mnv2"
