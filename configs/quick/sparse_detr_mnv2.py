"""A small Sparse DETR for the sample data (aerial tiles, tree crowns), trained in minutes on two CPU cores."""

from sparse_detr.recipes import mobilenet_v2, sparse_detr

from ..common.coco import dataloader, optimizer, train
from ..common.schedule import cosine as lr_multiplier

model = sparse_detr(
    backbone=mobilenet_v2(),
    num_classes=1,
    embed_dim=128,
    encoder_layers=2,
    decoder_layers=3,
    feedforward_dim=256,
    dropout=0.0,
    num_levels=3,
    num_queries=100,
    keep_ratio=0.3,
)
