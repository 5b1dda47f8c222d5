"""Encoders, which refine the selected tokens."""

from sparse_detr.modeling.encoder.deformable import DeformableEncoder, DeformableEncoderLayer, EncoderOutput, TokenRows
from sparse_detr.modeling.encoder.dual_attention import DualAttentionLayer, ObjectAttention
from sparse_detr.modeling.encoder.full import FullAttentionEncoder, FullAttentionEncoderLayer
from sparse_detr.modeling.encoder.interleaved import InterleavedEncoder, InterleavedTokens, NoEncoder
from sparse_detr.modeling.encoder.levels import LevelFeedForwardLayer, level_layers
from sparse_detr.modeling.encoder.row_column import RowColumnEncoder, RowColumnEncoderLayer

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
    "RowColumnEncoder",
    "RowColumnEncoderLayer",
    "TokenRows",
    "level_layers",
]
