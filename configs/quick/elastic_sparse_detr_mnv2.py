"""A small Sparse DETR for the sample data whose one checkpoint serves every share from 10 % to all tokens."""

from sparse_detr.recipes import mobilenet_v2, sparse_detr

from .trees import SIZES, training

model = sparse_detr(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, training_keep_ratios=(0.1, 1.0), **SIZES)
dataloader, lr_multiplier, optimizer, train = training(__file__)
