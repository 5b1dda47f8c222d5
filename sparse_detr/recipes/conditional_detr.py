"""Conditional DETR (Meng et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.layers import MLP
from sparse_detr.modeling.decoder import ConditionalPosition, ContentScale, conditional_layers
from sparse_detr.modeling.queries import LearnedPositions
from sparse_detr.recipes.full_attention import full_attention_detr
from sparse_detr.recipes.shared import Behavior, Origin, is_of_detrex, use_detrex_eps


def conditional_detr(
    *,
    embed_dim: int = 256,
    num_heads: int = 8,
    decoder_layers: int = 6,
    dropout: float = 0.1,
    num_queries: int = 300,
    behavior: Behavior = "exact",
    origin: Origin = "official",
    num_detections: int = 100,
    **options: Any,
) -> Any:
    """Return the LazyCall of Conditional DETR: queries attend by content and by the place of a reference point.

    Args:
        behavior: `exact`, or `released` for models with the weights of the public implementation.
        origin: whose weights these are; read only where `behavior` is `released`.
        num_detections: largest number of detections of an image; 300 in detrex.
        options: options of `full_attention_detr`.
    """
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "dropout": dropout}
    model = full_attention_detr(decoder_layers=decoder_layers, behavior=behavior, **sizes, **options)
    model.queries = L(LearnedPositions)(
        num_queries=num_queries, embed_dim=embed_dim, reference_points=L(MLP)(sizes=(embed_dim, embed_dim, 2))
    )
    model.decoder.layers = L(conditional_layers)(
        ffn=model.encoder.layers.module.ffn, count=decoder_layers, memory_padding="hidden", **sizes
    )
    scale = L(ContentScale)(sizes=(embed_dim, embed_dim, embed_dim)) if decoder_layers > 1 else None
    model.decoder.query_position = L(ConditionalPosition)(scale=scale)
    model.postprocess.num_detections = num_detections
    if is_of_detrex(behavior, origin):
        model.decoder.layers.memory_padding = "visible"
        use_detrex_eps(model)
    return model
