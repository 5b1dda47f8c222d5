"""A small Sparse DETR for the sample data."""

from sparse_detr.recipes import mobilenet_v2, sparse_detr

from .trees import SIZES, training

model = sparse_detr(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
train.output_dir = "output/quick"  # the folder of `make train`
