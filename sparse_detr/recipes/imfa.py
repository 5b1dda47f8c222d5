"""IMFA on DAB-DETR (Zhang et al., CVPR 2023): features of all scales, sampled around the best queries."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.layers import FeatureSampler
from sparse_detr.modeling.decoder import ConditionalSelfAttention
from sparse_detr.modeling.encoder import InterleavedEncoder, NoEncoder
from sparse_detr.modeling.queries.anchors import AnchorStart
from sparse_detr.modeling.tokenizers import CoarsestMapTokenizer
from sparse_detr.recipes.backbones import BackboneSpec, resnet
from sparse_detr.recipes.dab_detr import dab_detr
from sparse_detr.recipes.shared import Behavior


def imfa_dab_detr(
    *,
    backbone: BackboneSpec | None = None,
    embed_dim: int = 256,
    decoder_layers: int = 6,
    num_queries: int = 300,
    anchor_start: AnchorStart = "uniform_centers",
    sampling_share: float = 0.2,
    num_points: int = 8,
    position_temperature: float = 20.0,
    behavior: Behavior = "exact",
    **options: Any,
) -> Any:
    """Return the LazyCall of DAB-DETR with IMFA: encoder and decoder layers alternate, with sparse tokens between.

    Args:
        backbone: any number of maps, of which the coarsest becomes tokens; C2 to C5 of ResNet-50 if None.
        decoder_layers: number of decoder layers, and of encoder layers; at least 2.
        sampling_share: share of the queries that sample features for the next layers.
        num_points: points that each of these queries samples.
        options: options of `dab_detr`, except `encoder_layers`.

    Raises:
        ValueError: the share is out of range.
    """
    if not 0 < sampling_share <= 1:
        raise ValueError(f"sampling_share must be above 0 and at most 1, got {sampling_share}")
    backbone = backbone or resnet(50, num_maps=4)
    model = dab_detr(
        backbone=backbone.coarsest(),
        embed_dim=embed_dim,
        encoder_layers=decoder_layers,
        decoder_layers=decoder_layers,
        num_queries=num_queries,
        anchor_start=anchor_start,
        behavior=behavior,
        **options,
    )
    model.in_features = list(backbone.in_features)
    model.tokenizer = L(CoarsestMapTokenizer)(
        in_channels=list(backbone.in_channels),
        strides=list(backbone.strides),
        embed_dim=embed_dim,
        padding=behavior,
        position_temperature=position_temperature,
        position_offset=-0.5,
    )
    model.encoder.layers.module.self_attn._target_ = ConditionalSelfAttention
    sampler = L(FeatureSampler)(
        embed_dim=embed_dim,
        num_levels=len(backbone.in_features),
        num_points=num_points,
        mixing_dim=embed_dim // 4,
        position_temperature=position_temperature,
        map_padding="visible" if behavior == "released" else "hidden",
    )
    model.decoder.encoder = L(InterleavedEncoder)(
        layers=model.encoder.layers,
        sampler=sampler,
        num_sampling_queries=int(sampling_share * num_queries),
        embed_dim=embed_dim,
    )
    model.encoder = L(NoEncoder)()
    return model
