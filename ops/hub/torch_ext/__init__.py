"""Multi-scale deformable attention for the kernels hub: functions, and layers that replace those of other packages."""

from . import layers
from .backends import available_backends, choose_backend
from .functions import (
    fused_deformable_attention,
    multi_scale_deformable_attention,
    sample_products,
    splat_attention,
)

__all__ = [
    "available_backends",
    "choose_backend",
    "fused_deformable_attention",
    "layers",
    "multi_scale_deformable_attention",
    "sample_products",
    "splat_attention",
]
