"""A small Sparse DETR for whole aerial scenes, uncut: it is trained on large crops, with every share of the tokens.

The scenes: python -m sparse_detr.data.sample --output datasets/scenes --tile-size 1200 leaves the held-out scene whole
and cuts the other one into four. Then train with --train-json datasets/scenes/train.json --train-images
datasets/scenes/train --val-json datasets/scenes/val.json --val-images datasets/scenes/val.
"""

from sparse_detr.recipes import mobilenet_v2, sparse_detr

from .trees import SIZES, training

model = sparse_detr(
    backbone=mobilenet_v2(),
    num_classes=1,
    dropout=0.0,
    keep_ratio=0.2,
    training_keep_ratios=(0.05, 0.5),
    **{**SIZES, "num_queries": 800, "num_detections": 800},
)
dataloader, lr_multiplier, optimizer, train = training(__file__)
# At the scale of the scenes, in which a tree has about 40 pixels; the crops are about as large as the held-out scene.
dataloader.train.mapper.augmentations.update(
    short_sizes=[1024], max_size=1248, crop_range=(768, 1100), crop_short_sizes=[1088, 1200, 1312]
)
dataloader.test.mapper.augmentations.update(short_size=1035, max_size=1249)
dataloader.train.total_batch_size = 1
# With one image a step and few images the scores of the weights jump about; those of their average do not.
train.ema.enabled, train.ema.decay = True, 0.99
