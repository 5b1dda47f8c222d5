"""A small Sparse DETR for the sample data."""

from sparse_detr.recipes import mobilenet_v2, sparse_detr

from .trees import SIZES, dataloader, lr_multiplier, optimizer, train

model = sparse_detr(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, **SIZES)
train.output_dir = "output/quick"
