"""Deformable DETR (Zhu et al., ICLR 2021), and the variant with the best encoder tokens as queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention, SelfAttention, copies
from sparse_detr.modeling.decoder import (
    BoxRefinement,
    Decoder,
    DecoderAttentionMap,
    DeformableDecoderLayer,
    GivenPosition,
    NoRefinement,
)
from sparse_detr.modeling.encoder import DeformableEncoder, DeformableEncoderLayer
from sparse_detr.modeling.heads import ProposalProjection
from sparse_detr.modeling.queries import BoxStart, LearnedQueries, MemoryStart, TopKQueries
from sparse_detr.modeling.tokenizers import MultiScaleTokenizer
from sparse_detr.recipes.backbones import BackboneSpec, resnet
from sparse_detr.recipes.shared import Behavior, check_choice, detector

TwoStage = Literal["off", "projected", "memory"]


def deformable_detr(
    *,
    backbone: BackboneSpec | None = None,
    num_classes: int = 80,
    embed_dim: int = 256,
    num_heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    feedforward_dim: int = 1024,
    dropout: float = 0.1,
    num_levels: int = 4,
    num_points: int = 4,
    num_queries: int = 300,
    box_refinement: bool = False,
    two_stage: TwoStage = "off",
    encoder_auxiliary_loss: bool = False,
    behavior: Behavior = "exact",
    num_detections: int = 100,
    class_channels: Sequence[int] | None = None,
) -> Any:
    """Return the LazyCall of Deformable DETR, which keeps all tokens.

    Args:
        backbone: ResNet-50 if None.
        box_refinement: every decoder layer starts from the boxes of the layer before, and has its own head.
        two_stage: source of the queries: `off`, learned; `projected`, class-agnostic proposals, the two-stage form of
            the paper; `memory`, the best encoder tokens by their best class.
        encoder_auxiliary_loss: supervise every encoder layer but the last (Sparse DETR, section 3.3).
        behavior: `exact`, or `released` for models with the weights of the public implementation.
        class_channels: see `GeneralizedDETR`.
    """
    backbone = backbone or resnet(50)
    check_choice("two_stage", two_stage, get_args(TwoStage))
    tokenizer = L(MultiScaleTokenizer)(
        in_channels=list(backbone.in_channels),
        strides=list(backbone.strides),
        embed_dim=embed_dim,
        num_levels=num_levels,
        padding=behavior,
    )
    encoder_layer, decoder_layer = _layers(embed_dim, num_heads, num_levels, num_points, feedforward_dim, dropout)
    return detector(
        backbone=backbone,
        tokenizer=tokenizer,
        projection=None if two_stage == "off" else L(ProposalProjection)(embed_dim=embed_dim),
        encoder=L(DeformableEncoder)(layers=L(copies)(module=encoder_layer, count=encoder_layers)),
        queries=_queries(two_stage, num_queries, embed_dim),
        decoder=L(Decoder)(
            layers=L(copies)(module=decoder_layer, count=decoder_layers),
            query_position=L(GivenPosition)(),
            refinement=L(BoxRefinement)() if box_refinement else L(NoRefinement)(),
        ),
        heads={
            "embed_dim": embed_dim,
            "decoder_layers": decoder_layers,
            "encoder_layers": encoder_layers - 1 if encoder_auxiliary_loss else 0,
            "tied": not box_refinement,
            "proposals": two_stage != "off",
        },
        attention_map=L(DecoderAttentionMap)(alignment=behavior),
        num_classes=num_classes,
        behavior=behavior,
        num_detections=num_detections,
        class_channels=class_channels,
    )


def deformable_detr_topk(**options: Any) -> Any:
    """Return the LazyCall of Deformable DETR with box refinement and the best encoder tokens as queries.

    It is the dense baseline of Sparse DETR, which keeps all tokens; "top-k & BBR" in the tables of that paper. The
    public code of Sparse DETR calls it Efficient DETR; the model of that paper is `efficient_detr`.
    """
    return deformable_detr(**{"box_refinement": True, "two_stage": "memory", **options})


def _layers(
    embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int, dropout: float
) -> tuple[Any, Any]:
    """Return the LazyCalls of one encoder layer and one decoder layer."""
    attention = L(MultiScaleDeformableAttention)(
        embed_dim=embed_dim, num_heads=num_heads, num_levels=num_levels, num_points=num_points
    )
    ffn = L(FeedForward)(embed_dim=embed_dim, feedforward_dim=feedforward_dim, dropout=dropout)
    self_attn = L(SelfAttention)(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
    encoder_layer = L(DeformableEncoderLayer)(self_attn=attention, ffn=ffn, embed_dim=embed_dim, dropout=dropout)
    decoder_layer = L(DeformableDecoderLayer)(
        self_attn=self_attn, cross_attn=attention, ffn=ffn, embed_dim=embed_dim, dropout=dropout
    )
    return encoder_layer, decoder_layer


def _queries(two_stage: TwoStage, num_queries: int, embed_dim: int) -> Any:
    """Return the LazyCall of the queries."""
    if two_stage == "off":
        return L(LearnedQueries)(num_queries=num_queries, embed_dim=embed_dim)
    start = BoxStart if two_stage == "projected" else MemoryStart
    return L(TopKQueries)(
        num_queries=num_queries, start=L(start)(embed_dim=embed_dim), class_agnostic=two_stage == "projected"
    )
