"""Conditional DETR (Meng et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any, get_args

from detectron2.config import LazyCall as L

from sparse_detr.layers import MLP
from sparse_detr.modeling.decoder import ConditionalPosition, ContentScale, conditional_layers
from sparse_detr.modeling.queries import LearnedPositions
from sparse_detr.recipes.deformable_detr import Behavior, Origin, check_choice
from sparse_detr.recipes.detr import DETREX_IOU_EPS, full_attention_detr

DETREX_LOGIT_EPS = 1e-3


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
    check_choice("origin", origin, get_args(Origin))
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
    if behavior == "released" and origin == "detrex":
        model.decoder.layers.memory_padding = "visible"
        model.decoder.logit_eps = DETREX_LOGIT_EPS
        model.criterion.iou_eps = model.criterion.matcher.iou_eps = DETREX_IOU_EPS
    return model
