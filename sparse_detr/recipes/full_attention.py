"""What DETR, Conditional DETR and DAB-DETR share: full attention to one map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from detectron2.config import LazyCall as L
from torch import nn

from sparse_detr.layers import FeedForward, SelfAttention, copies
from sparse_detr.modeling.decoder import Decoder, GivenPosition, NoRefinement
from sparse_detr.modeling.encoder import FullAttentionEncoder, FullAttentionEncoderLayer
from sparse_detr.modeling.tokenizers import SingleScaleTokenizer
from sparse_detr.recipes.backbones import BackboneSpec, resnet
from sparse_detr.recipes.shared import Behavior, check_choice, check_single_map, detector

Activation = Literal["prelu", "relu"]


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
    check_single_map(backbone, "full attention")
    tokenizer = L(SingleScaleTokenizer)(
        in_channels=backbone.in_channels[0],
        stride=backbone.strides[0],
        embed_dim=embed_dim,
        padding=behavior,
        position_temperature=position_temperature,
    )
    ffn = L(FeedForward)(
        embed_dim=embed_dim,
        feedforward_dim=feedforward_dim,
        dropout=dropout,
        activation=L(nn.PReLU)() if activation == "prelu" else L(nn.ReLU)(),
    )
    self_attn = L(SelfAttention)(embed_dim=embed_dim, num_heads=num_heads, dropout=dropout)
    layer = L(FullAttentionEncoderLayer)(self_attn=self_attn, ffn=ffn, embed_dim=embed_dim, dropout=dropout)
    return detector(
        backbone=backbone,
        tokenizer=tokenizer,
        encoder=L(FullAttentionEncoder)(layers=L(copies)(module=layer, count=encoder_layers)),
        queries=None,
        decoder=L(Decoder)(
            layers=None,
            query_position=L(GivenPosition)(),
            refinement=L(NoRefinement)(),
            norm=L(nn.LayerNorm)(normalized_shape=embed_dim),
        ),
        heads={"embed_dim": embed_dim, "decoder_layers": decoder_layers, "tied": True, "size_bias": 0.0},
        num_classes=num_classes,
        behavior=behavior,
        class_channels=class_channels,
    )
