"""DETR (Carion et al., ECCV 2020), and what all models with full attention to one map share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L
from torch import nn

from sparse_detr.layers import CrossAttention, FeedForward, SelfAttention, copies
from sparse_detr.modeling.classification import SoftmaxNoObject
from sparse_detr.modeling.decoder import Decoder, FullAttentionDecoderLayer, GivenPosition, NoAttentionMap, NoRefinement
from sparse_detr.modeling.detector import BestClassDetections
from sparse_detr.modeling.encoder import FullAttentionEncoder, FullAttentionEncoderLayer
from sparse_detr.modeling.queries import LearnedPositions
from sparse_detr.modeling.tokenizers import SingleScaleTokenizer
from sparse_detr.recipes.backbones import BackboneSpec, resnet
from sparse_detr.recipes.deformable_detr import Behavior, Origin, check_choice, deformable_detr

Activation = Literal["prelu", "relu"]
DETREX_IOU_EPS = 1e-6


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
    check_choice("origin", origin, get_args(Origin))
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
    if behavior == "released" and origin == "detrex":
        model.criterion.iou_eps = model.criterion.matcher.iou_eps = DETREX_IOU_EPS
    model.postprocess = L(BestClassDetections)(classification="${..criterion.classification}")
    return model


def full_attention_detr(
    *,
    backbone: BackboneSpec | None = None,
    num_classes: int = 80,
    embed_dim: int = 256,
    num_heads: int = 8,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    feedforward_dim: int = 2048,
    dropout: float = 0.1,
    activation: Activation = "relu",
    position_temperature: float = 10_000.0,
    behavior: Behavior = "exact",
    class_channels: Sequence[int] | None = None,
) -> Any:
    """Return the LazyCall of what DETR, Conditional DETR and DAB-DETR share; queries and decoder layers are missing.

    Args:
        backbone: a backbone with one map; C5 of ResNet-50 if None.
        activation: activation of the feed-forward networks; `prelu` learns its slope, one for every layer.
        position_temperature: temperature of the sine embedding of tokens.
        behavior: see `detr`.
        class_channels: see `GeneralizedDETR`.

    Raises:
        ValueError: the backbone has several maps.
    """
    check_choice("activation", activation, get_args(Activation))
    backbone = backbone or resnet(50, num_maps=1)
    model = deformable_detr(
        backbone=backbone,
        num_classes=num_classes,
        embed_dim=embed_dim,
        decoder_layers=decoder_layers,
        behavior=behavior,
        class_channels=class_channels,
    )
    model.tokenizer = single_scale_tokenizer(backbone, embed_dim, behavior, position_temperature)
    layer = L(FullAttentionEncoderLayer)(
        self_attn=L(SelfAttention)(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout),
        ffn=L(FeedForward)(
            embed_dim=embed_dim,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            activation=L(nn.PReLU)() if activation == "prelu" else L(nn.ReLU)(),
        ),
        embed_dim=embed_dim,
        dropout=dropout,
    )
    model.encoder = L(FullAttentionEncoder)(layers=L(copies)(module=layer, count=encoder_layers))
    model.queries = None
    model.decoder = L(Decoder)(
        layers=None,
        query_position=L(GivenPosition)(),
        refinement=L(NoRefinement)(),
        norm=L(nn.LayerNorm)(normalized_shape=embed_dim),
    )
    model.heads.tied, model.heads.size_bias = True, 0.0
    model.attention_map = L(NoAttentionMap)()
    return model


def single_scale_tokenizer(
    backbone: BackboneSpec, embed_dim: int, behavior: Behavior, position_temperature: float
) -> Any:
    """Return the LazyCall of the tokenizer of a backbone with one map; raise `ValueError` for several maps."""
    check_single_map(backbone, "full attention")
    return L(SingleScaleTokenizer)(
        in_channels=backbone.in_channels[0],
        stride=backbone.strides[0],
        embed_dim=embed_dim,
        padding=behavior,
        position_temperature=position_temperature,
    )


def check_single_map(backbone: BackboneSpec, reader: str) -> None:
    """Raise `ValueError` for a backbone with several maps; `reader` names what reads only one."""
    if len(backbone.in_features) != 1:
        names = ", ".join(backbone.in_features)
        raise ValueError(f"{reader} reads one map, but the backbone gives {names}; keep the last one only")
