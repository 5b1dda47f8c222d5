"""A small DETR for the sample data."""

from sparse_detr.recipes import detr, mobilenet_v2

from .trees import ONE_MAP, training

model = detr(backbone=mobilenet_v2(strides=(16,)), num_classes=1, dropout=0.0, **ONE_MAP)
dataloader, lr_multiplier, optimizer, train = training(__file__)
