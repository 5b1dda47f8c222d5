"""Multi-scale deformable attention and its attention map, as one op with several backends."""

from sparse_detr.ops import native
from sparse_detr.ops.backends import available_backends, choose_backend
from sparse_detr.ops.functions import (
    fused_deformable_attention,
    multi_scale_deformable_attention,
    sample_products,
    splat_attention,
)
from sparse_detr.ops.patching import Patch, patch, unpatch
from sparse_detr.ops.reference import locate_samples, sampling_locations

__all__ = [
    "Patch",
    "available_backends",
    "choose_backend",
    "fused_deformable_attention",
    "locate_samples",
    "multi_scale_deformable_attention",
    "patch",
    "sample_products",
    "sampling_locations",
    "splat_attention",
    "unpatch",
]

native.status()  # so that programs which hold the ops, such as exported ones, run after this import
