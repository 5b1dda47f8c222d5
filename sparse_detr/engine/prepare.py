"""The form of a model in training: the same weights, some of them frozen, computed faster or in less memory."""

from detectron2.modeling import ResNet
from torch import nn

from sparse_detr.backbones import MobileNetV2
from sparse_detr.backbones.folding import fold_frozen_norms, use_channels_last
from sparse_detr.config.run import TrainSettings
from sparse_detr.engine.checkpoint_activations import checkpoint_activations
from sparse_detr.engine.freeze import freeze


def prepare_model(model: nn.Module, settings: TrainSettings) -> None:
    """Freeze parts of a model and change how others compute, in place; no weight is renamed, rounding may differ.

    Raises:
        UserError: see `freeze` and `checkpoint_activations`.
    """
    freeze(model, settings.freeze)
    backbone = getattr(model, "backbone", None)
    if settings.fast_backbone and isinstance(backbone, ResNet | MobileNetV2):
        fold_frozen_norms(backbone)
        use_channels_last(backbone)
    checkpoint_activations(model, settings.checkpoint_activations)
