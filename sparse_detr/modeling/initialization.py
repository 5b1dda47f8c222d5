"""Initial weights of a transformer (Deformable DETR's: Xavier-uniform matrices)."""

from __future__ import annotations

from torch import nn

from sparse_detr.layers import (
    FeatureSampler,
    KeyAwareDeformableAttention,
    MultiScaleDeformableAttention,
    PackedAttention,
)
from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.selection import PollAndPool

_OWN_START = (
    FeatureSampler,
    KeyAwareDeformableAttention,
    MultiScaleDeformableAttention,
    PackedAttention,
    PollAndPool,
    PredictionHead,
)


def initialize_transformer(module: nn.Module) -> None:
    """Initialise one module, for `nn.Module.apply`, which calls it for children before their parents."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.xavier_uniform_(module.in_proj_weight)
    elif isinstance(module, _OWN_START):
        module.reset_parameters()


class OwnInitialValues:
    """An initialisation that leaves every module with the values that it was made with (Anchor DETR)."""

    def __call__(self, module: nn.Module) -> None:
        """Change nothing."""
