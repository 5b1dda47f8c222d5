"""The dense twin of `sparse_detr_mnv2`: the same sizes, data and schedule, every token refined, nothing scored."""

from sparse_detr.recipes import efficient_detr, mobilenet_v2

from .sparse_detr_mnv2 import SIZES, dataloader, lr_multiplier, optimizer, train

model = efficient_detr(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, encoder_auxiliary_loss=True, **SIZES)
train.output_dir = "output/quick_dense"
