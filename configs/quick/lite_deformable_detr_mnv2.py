"""A small Lite Deformable DETR for the sample data: layer 1 refines two coarse levels of three, layer 2 all tokens."""

from sparse_detr.recipes import lite_deformable_detr, mobilenet_v2

from .trees import SIZES, training

model = lite_deformable_detr(
    backbone=mobilenet_v2(),
    num_classes=1,
    dropout=0.0,
    encoder_auxiliary_loss=True,
    high_levels=2,
    blocks=1,
    **SIZES,
)
dataloader, lr_multiplier, optimizer, train = training(__file__)
