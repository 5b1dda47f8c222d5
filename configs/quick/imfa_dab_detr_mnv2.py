"""A small DAB-DETR with IMFA for the sample data, on the three maps of MobileNetV2."""

from sparse_detr.recipes import imfa_dab_detr, mobilenet_v2

from .trees import SIZES, training

sizes = {name: SIZES[name] for name in ("embed_dim", "decoder_layers", "feedforward_dim", "num_queries")}
model = imfa_dab_detr(backbone=mobilenet_v2(), num_classes=1, **sizes)
dataloader, lr_multiplier, optimizer, train = training(__file__)
