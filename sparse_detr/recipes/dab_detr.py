"""DAB-DETR (Liu et al., ICLR 2022), with full attention to one map and with deformable attention."""

from __future__ import annotations

from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L

from sparse_detr.layers import MLP
from sparse_detr.modeling.decoder import (
    BoxPosition,
    ContentScale,
    LayerScale,
    LookForwardTwice,
    ModulatedBoxPosition,
    conditional_layers,
)
from sparse_detr.modeling.queries import Anchors, FixedCenterAnchors, LearnedAnchors, ProjectedStart, TopKQueries
from sparse_detr.modeling.queries.anchors import AnchorStart
from sparse_detr.recipes.deformable_detr import deformable_detr
from sparse_detr.recipes.dino import LOGIT_EPS, use_dab_losses
from sparse_detr.recipes.full_attention import Activation, full_attention_detr
from sparse_detr.recipes.shared import Behavior, check_choice
from sparse_detr.recipes.sparse_detr import sparse_detr

QueryScale = Literal["elementwise", "scalar", "fixed"]


def dab_detr(
    *,
    embed_dim: int = 256,
    num_heads: int = 8,
    decoder_layers: int = 6,
    dropout: float = 0.0,
    activation: Activation = "prelu",
    num_queries: int = 300,
    num_patterns: int = 0,
    anchor_start: AnchorStart = "normal",
    freeze_centers: bool = False,
    query_scale: QueryScale = "elementwise",
    position_temperature: float = 20.0,
    num_detections: int = 300,
    **options: Any,
) -> Any:
    """Return the LazyCall of DAB-DETR: full attention to one map, with learned boxes as queries.

    Args:
        activation, position_temperature: see `full_attention_detr`.
        num_queries: number of anchors.
        num_patterns: see `LearnedAnchors`; n > 0 patterns give n times as many queries.
        anchor_start: see `Anchors`.
        freeze_centers: the centres of anchors do not learn; see `FixedCenterAnchors`.
        query_scale: factors of the spatial queries: `elementwise` or `scalar`, made from the content, one for each
            channel or query; `fixed`, learned for every layer and channel.
        options: options of `full_attention_detr`.
    """
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "dropout": dropout}
    model = full_attention_detr(
        decoder_layers=decoder_layers,
        activation=activation,
        position_temperature=position_temperature,
        **sizes,
        **options,
    )
    model.encoder.position_scale = L(MLP)(sizes=(embed_dim, embed_dim, embed_dim))
    model.queries = learned_anchors(num_queries, num_patterns, anchor_start, freeze_centers, embed_dim)
    model.decoder.layers = L(conditional_layers)(
        ffn=model.encoder.layers.module.ffn, count=decoder_layers, memory_padding="hidden", **sizes
    )
    model.decoder.query_position = L(ModulatedBoxPosition)(
        embed_dim=embed_dim, scale=position_scale(query_scale, decoder_layers, embed_dim)
    )
    model.decoder.refinement = L(LookForwardTwice)()
    model.decoder.logit_eps = LOGIT_EPS
    model.postprocess.num_detections = num_detections
    use_dab_losses(model)
    return model


def dab_deformable_detr(
    *,
    embed_dim: int = 256,
    feedforward_dim: int = 2048,
    dropout: float = 0.0,
    num_queries: int = 300,
    num_patterns: int = 0,
    anchor_start: AnchorStart = "uniform",
    freeze_centers: bool = False,
    two_stage: bool = False,
    behavior: Behavior = "exact",
    num_detections: int = 300,
    **options: Any,
) -> Any:
    """Return the LazyCall of DAB-Deformable-DETR: Deformable DETR with learned boxes as queries.

    Args:
        num_queries, num_patterns, anchor_start, freeze_centers: see `dab_detr`.
        two_stage: the queries are the best encoder tokens instead, without anchors and patterns.
        options: options of `deformable_detr`, except `box_refinement`.

    Raises:
        ValueError: options of anchors are set with `two_stage`.
    """
    if two_stage and (num_patterns or freeze_centers):
        raise ValueError(
            "num_patterns and freeze_centers are for learned anchors, but two_stage has no anchors; leave them out"
        )
    model = deformable_detr(
        embed_dim=embed_dim,
        feedforward_dim=feedforward_dim,
        dropout=dropout,
        box_refinement=True,
        two_stage="memory" if two_stage else "off",
        behavior=behavior,
        num_detections=num_detections,
        **options,
    )
    if two_stage:
        model.queries = L(TopKQueries)(num_queries=num_queries, start=L(ProjectedStart)(), supervise="chosen")
    else:
        model.queries = learned_anchors(num_queries, num_patterns, anchor_start, freeze_centers, embed_dim)
        model.queries.content = "learned"
    model.decoder.query_position = L(BoxPosition)(
        embed_dim=embed_dim,
        scale=position_scale("elementwise", model.decoder.layers.count, embed_dim),
        frame="padded" if behavior == "released" else "image",
    )
    model.decoder.logit_eps = LOGIT_EPS
    use_dab_losses(model)
    return model


def sparse_dab_deformable_detr(**options: Any) -> Any:
    """Return the LazyCall of DAB-Deformable-DETR with the encoder of Sparse DETR; `two_stage` is True by default."""
    return sparse_detr(base=dab_deformable_detr, **{"two_stage": True, **options})


def learned_anchors(
    num_queries: int, num_patterns: int, anchor_start: AnchorStart, freeze_centers: bool, embed_dim: int
) -> Any:
    """Return the LazyCall of learned boxes as queries."""
    check_choice("anchor_start", anchor_start, get_args(AnchorStart))
    anchors = L(FixedCenterAnchors if freeze_centers else Anchors)(num_anchors=num_queries, start=anchor_start)
    return L(LearnedAnchors)(anchors=anchors, embed_dim=embed_dim, content="zeros", num_patterns=num_patterns)


def position_scale(query_scale: QueryScale, decoder_layers: int, embed_dim: int) -> Any:
    """Return the LazyCall of the factors of query positions; None if no layer would use a network of the content."""
    check_choice("query_scale", query_scale, get_args(QueryScale))
    if query_scale == "fixed":
        return L(LayerScale)(num_layers=decoder_layers, embed_dim=embed_dim)
    if decoder_layers < 2:
        return None
    return L(ContentScale)(sizes=(embed_dim, embed_dim, embed_dim if query_scale == "elementwise" else 1))
