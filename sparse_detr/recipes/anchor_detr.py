"""Anchor DETR (Wang et al., AAAI 2022): anchor points as queries, row-column decoupled attention to one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L

from sparse_detr.layers import FeedForward, RowColumnAttention, SelfAttention, copies
from sparse_detr.modeling.decoder import Decoder, GivenPosition, NoRefinement, RowColumnDecoderLayer
from sparse_detr.modeling.encoder import RowColumnEncoder, RowColumnEncoderLayer
from sparse_detr.modeling.initialization import OwnInitialValues
from sparse_detr.modeling.queries import GridPoints, LearnedPoints, PatternQueries
from sparse_detr.modeling.tokenizers import RowColumnTokenizer
from sparse_detr.recipes.backbones import BackboneSpec, resnet
from sparse_detr.recipes.shared import (
    Behavior,
    Origin,
    check_choice,
    check_single_map,
    detector,
    is_of_detrex,
    use_detrex_eps,
)

AnchorPoints = Literal["learned", "grid"]


def anchor_detr(
    *,
    backbone: BackboneSpec | None = None,
    num_classes: int = 80,
    embed_dim: int = 256,
    num_heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    feedforward_dim: int = 1024,
    dropout: float = 0.0,
    num_queries: int = 300,
    num_patterns: int = 3,
    anchor_points: AnchorPoints = "learned",
    behavior: Behavior = "exact",
    origin: Origin = "official",
    num_detections: int = 100,
    class_channels: Sequence[int] | None = None,
) -> Any:
    """Return the LazyCall of Anchor DETR.

    Args:
        backbone: a backbone with one map; dilated C5 (DC5) of ResNet-50 if None.
        num_queries: number of anchor points.
        num_patterns: queries at every point.
        anchor_points: `learned`, or a fixed `grid`.
        behavior: `exact`, or `released` for models with the weights of the public implementations.
        origin: whose weights a `released` model has.
        class_channels: see `GeneralizedDETR`.

    Raises:
        ValueError: the backbone has several maps.
    """
    backbone = backbone or resnet(50, num_maps=1, dilation=True)
    check_single_map(backbone, "row-column attention")
    check_choice("anchor_points", anchor_points, get_args(AnchorPoints))
    attention = L(RowColumnAttention)(
        embed_dim=embed_dim, num_heads=num_heads, mean_over="all" if behavior == "released" else "valid"
    )
    self_attn = L(SelfAttention)(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
    ffn = L(FeedForward)(embed_dim=embed_dim, feedforward_dim=feedforward_dim, dropout=dropout)
    encoder_layer = L(RowColumnEncoderLayer)(self_attn=attention, ffn=ffn, embed_dim=embed_dim, dropout=dropout)
    decoder_layer = L(RowColumnDecoderLayer)(
        self_attn=self_attn, cross_attn=attention, ffn=ffn, embed_dim=embed_dim, dropout=dropout
    )
    points = L(LearnedPoints if anchor_points == "learned" else GridPoints)(num_points=num_queries)
    model = detector(
        backbone=backbone,
        tokenizer=L(RowColumnTokenizer)(
            in_channels=backbone.in_channels[0], stride=backbone.strides[0], embed_dim=embed_dim, padding=behavior
        ),
        encoder=L(RowColumnEncoder)(layers=L(copies)(module=encoder_layer, count=encoder_layers)),
        queries=L(PatternQueries)(points=points, embed_dim=embed_dim, num_patterns=num_patterns),
        decoder=L(Decoder)(
            layers=L(copies)(module=decoder_layer, count=decoder_layers),
            query_position=L(GivenPosition)(),
            refinement=L(NoRefinement)(),
        ),
        heads={"embed_dim": embed_dim, "decoder_layers": decoder_layers, "tied": True},
        num_classes=num_classes,
        behavior=behavior,
        num_detections=num_detections,
        class_channels=class_channels,
        initialize=L(OwnInitialValues)(),
    )
    if is_of_detrex(behavior, origin):
        use_detrex_eps(model)
    return model
