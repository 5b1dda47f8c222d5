"""Decoders: from queries and encoded tokens to predictions."""

from sparse_detr.modeling.decoder.attention_map import DecoderAttentionMap, NoAttentionMap
from sparse_detr.modeling.decoder.conditional import (
    ConditionalDecoderLayer,
    ConditionalSelfAttention,
    conditional_layers,
)
from sparse_detr.modeling.decoder.deformable import (
    BoxRefinement,
    Decoder,
    DecoderLayer,
    DecoderOutput,
    DeformableDecoderLayer,
    FixedMemory,
    GivenPosition,
    LookForwardTwice,
    NoRefinement,
    QueryPosition,
)
from sparse_detr.modeling.decoder.full import FullAttentionDecoderLayer
from sparse_detr.modeling.decoder.query_position import (
    BoxPosition,
    ConditionalPosition,
    ContentScale,
    LayerScale,
    ModulatedBoxPosition,
)
from sparse_detr.modeling.decoder.row_column import RowColumnDecoderLayer

__all__ = [
    "BoxPosition",
    "BoxRefinement",
    "ConditionalDecoderLayer",
    "ConditionalPosition",
    "ConditionalSelfAttention",
    "ContentScale",
    "Decoder",
    "DecoderAttentionMap",
    "DecoderLayer",
    "DecoderOutput",
    "DeformableDecoderLayer",
    "FixedMemory",
    "FullAttentionDecoderLayer",
    "GivenPosition",
    "LayerScale",
    "LookForwardTwice",
    "ModulatedBoxPosition",
    "NoAttentionMap",
    "NoRefinement",
    "QueryPosition",
    "RowColumnDecoderLayer",
    "conditional_layers",
]
