"""Multi-scale deformable attention and the map of where it looked."""

from sparse_detr.ops.attention_map import splat_attention
from sparse_detr.ops.deformable_attention import multi_scale_deformable_attention

__all__ = ["multi_scale_deformable_attention", "splat_attention"]
