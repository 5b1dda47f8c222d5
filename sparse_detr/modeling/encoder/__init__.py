"""Encoders, which refine the selected tokens."""

from sparse_detr.modeling.encoder.deformable import DeformableEncoder, DeformableEncoderLayer, EncoderOutput, TokenRows
from sparse_detr.modeling.encoder.dual_attention import DualAttentionLayer, ObjectAttention
from sparse_detr.modeling.encoder.full import FullAttentionEncoder, FullAttentionEncoderLayer
from sparse_detr.modeling.encoder.interleaved import InterleavedEncoder, InterleavedTokens, NoEncoder
from sparse_detr.modeling.encoder.levels import LevelFeedForwardLayer, level_layers

__all__ = [
    "DeformableEncoder",
    "DeformableEncoderLayer",
    "DualAttentionLayer",
    "EncoderOutput",
    "FullAttentionEncoder",
    "FullAttentionEncoderLayer",
    "InterleavedEncoder",
    "InterleavedTokens",
    "NoEncoder",
    "LevelFeedForwardLayer",
    "ObjectAttention",
    "TokenRows",
    "level_layers",
]
