"""The form of a model in training: the same weights, computed faster or in less memory."""

from detectron2.modeling import ResNet
from torch import nn

from sparse_detr.backbones import MobileNetV2
from sparse_detr.backbones.folding import fold_frozen_norms, use_channels_last
from sparse_detr.config.run import TrainSettings
from sparse_detr.engine.checkpoint_activations import checkpoint_activations


def prepare_model(model: nn.Module, settings: TrainSettings) -> None:
    """Change how the parts of a model compute, in place; no weight is renamed, and numbers differ by rounding only.

    Raises:
        UserError: see `checkpoint_activations`.
    """
    backbone = getattr(model, "backbone", None)
    if settings.fast_backbone and isinstance(backbone, ResNet | MobileNetV2):
        fold_frozen_norms(backbone)
        use_channels_last(backbone)
    checkpoint_activations(model, settings.checkpoint_activations)
