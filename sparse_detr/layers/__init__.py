"""Layers that do not depend on a detector."""

from sparse_detr.layers.attention import (
    CrossAttention,
    PackedAttention,
    SelfAttention,
    attention_mask,
    multi_head_attention,
    token_mask,
)
from sparse_detr.layers.blocks import MLP, FeedForward, copies
from sparse_detr.layers.box_ops import inverse_sigmoid
from sparse_detr.layers.deformable_attention import AttentionSamples, MultiScaleDeformableAttention
from sparse_detr.layers.group_norm import MaskedGroupNorm
from sparse_detr.layers.position_encoding import embed_boxes, embed_tokens

__all__ = [
    "MLP",
    "AttentionSamples",
    "CrossAttention",
    "FeedForward",
    "MaskedGroupNorm",
    "MultiScaleDeformableAttention",
    "PackedAttention",
    "SelfAttention",
    "attention_mask",
    "copies",
    "embed_boxes",
    "embed_tokens",
    "inverse_sigmoid",
    "multi_head_attention",
    "token_mask",
]
