"""Layers that do not depend on a detector."""

from sparse_detr.layers.attention import (
    CrossAttention,
    PackedAttention,
    SelfAttention,
    attention_mask,
    check_heads,
    multi_head_attention,
    token_mask,
)
from sparse_detr.layers.blocks import MLP, FeedForward, copies
from sparse_detr.layers.box_ops import generalized_iou, inverse_sigmoid
from sparse_detr.layers.deformable_attention import AttentionSamples, MultiScaleDeformableAttention
from sparse_detr.layers.group_norm import MaskedGroupNorm
from sparse_detr.layers.key_aware_attention import DeformableAttention, KeyAwareDeformableAttention
from sparse_detr.layers.position_encoding import CoordinateEmbedding, embed_boxes, embed_tokens
from sparse_detr.layers.row_column_attention import RowColumnAttention
from sparse_detr.layers.sparse_sampling import FeatureSampler, SparseFeatures

__all__ = [
    "MLP",
    "AttentionSamples",
    "CoordinateEmbedding",
    "CrossAttention",
    "DeformableAttention",
    "FeedForward",
    "KeyAwareDeformableAttention",
    "MaskedGroupNorm",
    "MultiScaleDeformableAttention",
    "PackedAttention",
    "RowColumnAttention",
    "SelfAttention",
    "FeatureSampler",
    "SparseFeatures",
    "attention_mask",
    "check_heads",
    "copies",
    "embed_boxes",
    "embed_tokens",
    "generalized_iou",
    "inverse_sigmoid",
    "multi_head_attention",
    "token_mask",
]
