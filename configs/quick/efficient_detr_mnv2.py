"""A small Efficient DETR for the sample data."""

from sparse_detr.recipes import efficient_detr, mobilenet_v2

from .trees import SIZES, training

sizes = {**SIZES, "decoder_layers": 1}
model = efficient_detr(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, **sizes)
dataloader, lr_multiplier, optimizer, train = training(__file__)
