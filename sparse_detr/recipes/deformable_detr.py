"""Deformable DETR (Zhu et al., ICLR 2021), and the variant with the best encoder tokens as queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention, SelfAttention, copies
from sparse_detr.modeling.classification import SigmoidFocal
from sparse_detr.modeling.decoder import (
    BoxRefinement,
    Decoder,
    DecoderAttentionMap,
    DeformableDecoderLayer,
    GivenPosition,
    NoRefinement,
)
from sparse_detr.modeling.detector import GeneralizedDETR, TopKDetections
from sparse_detr.modeling.encoder import DeformableEncoder, DeformableEncoderLayer
from sparse_detr.modeling.heads import ProposalGenerator, ProposalProjection, make_heads
from sparse_detr.modeling.queries import BoxStart, LearnedQueries, MemoryStart, TopKQueries
from sparse_detr.modeling.selection import KeepAllTokens
from sparse_detr.modeling.tokenizers import MultiScaleTokenizer
from sparse_detr.modeling.training import (
    HungarianMatcher,
    NoAuxiliaryProposals,
    NoDenoising,
    NoSupervision,
    SetCriterion,
)
from sparse_detr.recipes.backbones import BackboneSpec, resnet

Behavior = Literal["exact", "released"]
Origin = Literal["official", "detrex"]
"""Whose weights a model with `behavior="released"` loads: those of the authors or of detrex, where they differ."""

DETREX_IOU_EPS, DETREX_LOGIT_EPS = 1e-6, 1e-3

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
    check_choice("behavior", behavior, get_args(Behavior))
    check_choice("two_stage", two_stage, get_args(TwoStage))
    released = behavior == "released"
    encoder_layer, decoder_layer = transformer_layers(
        embed_dim=embed_dim,
        num_heads=num_heads,
        num_levels=num_levels,
        num_points=num_points,
        feedforward_dim=feedforward_dim,
        dropout=dropout,
    )
    return L(GeneralizedDETR)(
        **backbone_parts(backbone, embed_dim, num_levels, behavior),
        proposals=L(ProposalGenerator)(border="dropped" if released else "clamped"),
        projection=None if two_stage == "off" else L(ProposalProjection)(embed_dim=embed_dim),
        selector=L(KeepAllTokens)(),
        encoder=L(DeformableEncoder)(layers=L(copies)(module=encoder_layer, count=encoder_layers)),
        queries=_queries(two_stage, num_queries, embed_dim),
        denoising=L(NoDenoising)(),
        decoder=L(Decoder)(
            layers=L(copies)(module=decoder_layer, count=decoder_layers),
            query_position=L(GivenPosition)(),
            refinement=L(BoxRefinement)() if box_refinement else L(NoRefinement)(),
        ),
        heads=L(make_heads)(
            embed_dim=embed_dim,
            num_classes="${..num_classes}",
            decoder_layers=decoder_layers,
            encoder_layers=encoder_layers - 1 if encoder_auxiliary_loss else 0,
            tied=not box_refinement,
            proposals=two_stage != "off",
            classification="${..criterion.classification}",
        ),
        attention_map=L(DecoderAttentionMap)(alignment=behavior),
        auxiliary_proposals=L(NoAuxiliaryProposals)(),
        supervision=L(NoSupervision)(),
        criterion=L(SetCriterion)(
            matcher=L(HungarianMatcher)(classification="${..classification}"), classification=L(SigmoidFocal)()
        ),
        postprocess=L(TopKDetections)(classification="${..criterion.classification}", num_detections=num_detections),
        num_classes=num_classes,
        class_channels=class_channels,
        supervise_surplus_rows=released,
    )


def backbone_parts(backbone: BackboneSpec, embed_dim: int, num_levels: int, behavior: Behavior) -> dict[str, Any]:
    """Return the backbone and the LazyCall of its tokenizer, as arguments of `GeneralizedDETR`."""
    tokenizer = L(MultiScaleTokenizer)(
        in_channels=list(backbone.in_channels),
        strides=list(backbone.strides),
        embed_dim=embed_dim,
        num_levels=num_levels,
        padding=behavior,
    )
    parts = {"backbone": backbone.config, "in_features": list(backbone.in_features), "tokenizer": tokenizer}
    return parts | pixels_of(backbone)


def pixels_of(backbone: BackboneSpec) -> dict[str, Any]:
    """Return mean and standard deviation of pixels as arguments of `GeneralizedDETR`, where a backbone has its own."""
    own = {"pixel_mean": backbone.pixel_mean, "pixel_std": backbone.pixel_std}
    return {name: list(values) for name, values in own.items() if values is not None}


def _queries(two_stage: TwoStage, num_queries: int, embed_dim: int) -> Any:
    if two_stage == "off":
        return L(LearnedQueries)(num_queries=num_queries, embed_dim=embed_dim)
    start = BoxStart if two_stage == "projected" else MemoryStart
    return L(TopKQueries)(
        num_queries=num_queries, start=L(start)(embed_dim=embed_dim), class_agnostic=two_stage == "projected"
    )


def transformer_layers(
    *, embed_dim: int, num_heads: int, num_levels: int, num_points: int, feedforward_dim: int, dropout: float
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


def deformable_detr_topk(**options: Any) -> Any:
    """Return the LazyCall of Deformable DETR with box refinement and the best encoder tokens as queries.

    It is the dense baseline of Sparse DETR, which keeps all tokens; "top-k & BBR" in the tables of that paper. The
    public code of Sparse DETR calls it Efficient DETR; the model of that paper is `efficient_detr`.
    """
    return deformable_detr(**{"box_refinement": True, "two_stage": "memory", **options})


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        hint = "; quote it in yaml, where off without quotes is False" if value is False else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")


def is_of_detrex(behavior: Behavior, origin: Origin) -> bool:
    """Return whether a model has weights of detrex; raise `ValueError` for an unknown origin."""
    check_choice("origin", origin, get_args(Origin))
    return behavior == "released" and origin == "detrex"


def use_detrex_eps(model: Any) -> None:
    """Set the smallest share in the logit of a reference point, and what is added to the denominators of the IoU."""
    model.decoder.logit_eps = DETREX_LOGIT_EPS
    model.criterion.iou_eps = model.criterion.matcher.iou_eps = DETREX_IOU_EPS
