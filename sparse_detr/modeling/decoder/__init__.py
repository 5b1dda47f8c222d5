"""Decoders: from queries and encoded tokens to predictions."""

from sparse_detr.modeling.decoder.attention_map import DecoderAttentionMap, NoAttentionMap
from sparse_detr.modeling.decoder.conditional import ConditionalDecoderLayer, conditional_layers
from sparse_detr.modeling.decoder.deformable import (
    BoxRefinement,
    Decoder,
    DecoderOutput,
    DeformableDecoderLayer,
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

__all__ = [
    "BoxPosition",
    "BoxRefinement",
    "ConditionalDecoderLayer",
    "ConditionalPosition",
    "ContentScale",
    "Decoder",
    "DecoderAttentionMap",
    "DecoderOutput",
    "DeformableDecoderLayer",
    "FullAttentionDecoderLayer",
    "GivenPosition",
    "LayerScale",
    "LookForwardTwice",
    "ModulatedBoxPosition",
    "NoAttentionMap",
    "NoRefinement",
    "QueryPosition",
    "conditional_layers",
]
