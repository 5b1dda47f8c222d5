"""DETR (Carion et al., ECCV 2020)."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.layers import CrossAttention, copies
from sparse_detr.modeling.classification import SoftmaxNoObject
from sparse_detr.modeling.decoder import FullAttentionDecoderLayer
from sparse_detr.modeling.detector import BestClassDetections
from sparse_detr.modeling.queries import LearnedPositions
from sparse_detr.recipes.full_attention import full_attention_detr
from sparse_detr.recipes.shared import DETREX_IOU_EPS, Behavior, Origin, is_of_detrex


def detr(
    *,
    embed_dim: int = 256,
    num_heads: int = 8,
    decoder_layers: int = 6,
    dropout: float = 0.1,
    num_queries: int = 100,
    behavior: Behavior = "exact",
    origin: Origin = "official",
    **options: Any,
) -> Any:
    """Return the LazyCall of DETR: learned queries, a softmax with "no object", and boxes without a reference.

    Args:
        behavior: `exact`, or `released` for models with the weights of the public implementation.
        origin: whose weights these are; read only where `behavior` is `released`.
        options: options of `full_attention_detr`.
    """
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "dropout": dropout}
    model = full_attention_detr(decoder_layers=decoder_layers, behavior=behavior, **sizes, **options)
    model.queries = L(LearnedPositions)(num_queries=num_queries, embed_dim=embed_dim)
    encoder_layer = model.encoder.layers.module
    layer = L(FullAttentionDecoderLayer)(
        self_attn=encoder_layer.self_attn,
        cross_attn=L(CrossAttention)(**sizes),
        ffn=encoder_layer.ffn,
        embed_dim=embed_dim,
        dropout=dropout,
    )
    model.decoder.layers = L(copies)(module=layer, count=decoder_layers)
    model.heads.box_start = "anywhere"
    model.criterion.classification = L(SoftmaxNoObject)(no_object_weight=0.1)
    model.criterion.class_weight = model.criterion.matcher.class_weight = 1.0
    if is_of_detrex(behavior, origin):
        model.criterion.iou_eps = model.criterion.matcher.iou_eps = DETREX_IOU_EPS
    model.postprocess = L(BestClassDetections)(classification="${..criterion.classification}")
    return model
