"""The dense twin of `sparse_detr_mnv2`: every token refined, nothing scored."""

from sparse_detr.recipes import efficient_detr, mobilenet_v2

from .trees import SIZES, dataloader, lr_multiplier, optimizer, train

model = efficient_detr(backbone=mobilenet_v2(), num_classes=1, dropout=0.0, encoder_auxiliary_loss=True, **SIZES)
train.output_dir = "output/efficient_detr_mnv2"
