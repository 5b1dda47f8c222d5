"""A small Conditional DETR for the sample data."""

from sparse_detr.recipes import conditional_detr, mobilenet_v2

from .trees import ONE_MAP, training

model = conditional_detr(backbone=mobilenet_v2(strides=(16,)), num_classes=1, dropout=0.0, **ONE_MAP)
dataloader, lr_multiplier, optimizer, train = training(__file__)
optimizer.params.sampling_multiplier = 1.0  # of the layer that makes the reference points, too
