"""A small PnP-DETR for the sample data."""

from sparse_detr.recipes import mobilenet_v2, pnp_detr

from .trees import ONE_MAP, training

model = pnp_detr(backbone=mobilenet_v2(strides=(16,)), num_classes=1, dropout=0.0, **ONE_MAP)
dataloader, lr_multiplier, optimizer, train = training(__file__)
