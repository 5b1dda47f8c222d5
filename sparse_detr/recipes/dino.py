"""DINO (Zhang et al., ICLR 2023)."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L
from torch import nn

from sparse_detr.modeling.decoder import BoxPosition, LookForwardTwice
from sparse_detr.modeling.queries import LearnedStart, TopKQueries
from sparse_detr.modeling.training import ContrastiveDenoising
from sparse_detr.recipes.deformable_detr import deformable_detr
from sparse_detr.recipes.shared import Behavior

IOU_EPS = 1e-6
LOGIT_EPS = 1e-3


def dino(
    *,
    embed_dim: int = 256,
    feedforward_dim: int = 2048,
    dropout: float = 0.0,
    num_queries: int = 900,
    denoising_queries: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
    shared_heads: bool = False,
    position_temperature: float = 20.0,
    position_offset: float = 0.0,
    behavior: Behavior = "exact",
    num_detections: int = 300,
    **options: Any,
) -> Any:
    """Return the LazyCall of DINO: mixed query selection, denoising queries and look forward twice.

    Args:
        denoising_queries: largest number of positive denoising queries of an image; there are as many negative ones. 0
            for no denoising.
        label_noise, box_noise: see `ContrastiveDenoising`.
        shared_heads: all decoder layers share one head, as in the official code; detrex has one head for each layer.
        position_temperature, position_offset: options of the sine embedding of tokens; 20 and 0 in the official code,
            10000 and -0.5 in some models of detrex.
        options: options of `deformable_detr`, except `two_stage` and `box_refinement`.
    """
    model = deformable_detr(
        embed_dim=embed_dim,
        feedforward_dim=feedforward_dim,
        dropout=dropout,
        num_queries=num_queries,
        two_stage="memory",
        box_refinement=True,
        behavior=behavior,
        num_detections=num_detections,
        **options,
    )
    released = behavior == "released"
    model.tokenizer.position_temperature, model.tokenizer.position_offset = position_temperature, position_offset
    model.queries = L(TopKQueries)(
        num_queries=num_queries,
        start=L(LearnedStart)(num_queries="${..num_queries}", embed_dim=embed_dim),
        supervise="chosen",
    )
    model.denoising = L(ContrastiveDenoising)(
        num_classes="${..num_classes}",
        embed_dim=embed_dim,
        num_queries=denoising_queries,
        label_noise=label_noise,
        box_noise=box_noise,
        unused="negative" if released else "ignored",
        logit_eps=LOGIT_EPS,
    )
    model.decoder.query_position = L(BoxPosition)(embed_dim=embed_dim, frame="padded" if released else "image")
    model.decoder.refinement = L(LookForwardTwice)()
    model.decoder.norm = L(nn.LayerNorm)(normalized_shape=embed_dim)
    model.decoder.logit_eps = LOGIT_EPS
    model.heads.tied = shared_heads
    use_dab_losses(model)
    return model


def use_dab_losses(model: Any) -> None:
    """Set the losses of DAB-DETR and DINO: class loss with weight 1 instead of 2, `iou_eps` 1e-6."""
    model.criterion.class_weight = 1.0
    model.criterion.iou_eps = model.criterion.matcher.iou_eps = IOU_EPS
