"""Focus-DETR (Zheng et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

from detectron2.config import LazyCall as L

from sparse_detr.modeling.encoder import DeformableEncoder, DualAttentionLayer, ObjectAttention
from sparse_detr.modeling.heads import ProposalProjection
from sparse_detr.modeling.selection import (
    BatchCascadedBudget,
    CascadedBudget,
    ScoringNetwork,
    TopDownScorer,
    TopKSelector,
    layer_shares,
)
from sparse_detr.modeling.training import AuxiliaryProposals, ForegroundLabels, ForegroundSupervision
from sparse_detr.recipes.deformable_detr import deformable_detr
from sparse_detr.recipes.dino import dino
from sparse_detr.recipes.elastic import elastic
from sparse_detr.recipes.shared import Behavior, check_choice, split_options

SCHEDULE = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)
"""Shares of the six encoder layers; their mean is 0.6."""


def focus_detr(*, base: Callable[..., Any] = dino, **options: Any) -> Any:
    """Return the LazyCall of `base` with the encoder of Focus-DETR.

    Options are those of `focus`, of `elastic` and of `base`.
    """
    training, options = split_options(options, elastic)
    own, others = split_options(options, focus)
    return elastic(focus(base(**others), **own), **training)


def focus_deformable_detr(*, two_stage: str = "projected", box_refinement: bool = True, **options: Any) -> Any:
    """Return the LazyCall of Deformable DETR with the encoder of Focus-DETR.

    With `two_stage` off, an auxiliary proposal head classifies the tokens.
    """
    return focus_detr(base=deformable_detr, two_stage=two_stage, box_refinement=box_refinement, **options)


def focus(
    model: Any,
    *,
    keep_ratio: float = 0.5,
    inference_keep_ratio: float | None = None,
    schedule: Sequence[float] | None = None,
    num_objects: int = 300,
    behavior: Behavior = "exact",
) -> Any:
    """Give a dense model the encoder of Focus-DETR: it refines foreground tokens; object tokens attend to each other.

    Args:
        model: LazyCall of a detector with a deformable encoder; it is changed in place and returned.
        keep_ratio: share of the tokens that the first encoder layer refines; with the published schedule the mean over
            the layers is 0.6 of it: 0.5 gives the 30 % of the paper.
        inference_keep_ratio: another share at inference; None for `keep_ratio`.
        schedule: share of the tokens of the first layer that every layer refines; None spreads the published schedule
            over the layers.
        num_objects: number of object tokens, which attend to each other.
        behavior: `exact`, or `released` for models with the weights of the public implementation.

    Raises:
        ValueError: the encoder is not deformable.
    """
    check_choice("behavior", behavior, get_args(Behavior))
    if model.encoder._target_ is not DeformableEncoder:
        raise ValueError(
            "Focus-DETR needs a deformable encoder; use dino, deformable_detr or dab_deformable_detr as the base"
        )
    released = behavior == "released"
    if not model.heads.proposals:
        _add_proposal_head(model)
    model.selector = L(TopKSelector)(
        scorer=L(TopDownScorer)(
            network=L(ScoringNetwork)(embed_dim=model.tokenizer.embed_dim, mean_over="all" if released else "real"),
            num_levels="${...tokenizer.num_levels}",
            modulation=behavior,
        ),
        budget=L(BatchCascadedBudget if released else CascadedBudget)(
            keep_ratio=keep_ratio,
            schedule=L(layer_shares)(num_layers="${....encoder.layers.count}", published=SCHEDULE, shares=schedule),
        ),
        inference_keep_ratio=inference_keep_ratio,
        padding="ranked_lowest" if released else "excluded",
    )
    model.encoder.source = "static" if released else "updated"
    model.encoder.layers.module = _dual_attention(model.encoder.layers.module, num_objects, released)
    model.supervision = L(ForegroundSupervision)(
        labels=L(ForegroundLabels)(
            finest_range=8.0 * model.tokenizer.strides[0],
            rule="side" if released else "chessboard",
            strides="${...tokenizer.strides}" if released else None,
        ),
        weight=1.5,
        normalization="image" if released else "batch",
        padding="negative" if released else "ignored",
    )
    return model


def _dual_attention(layer: Any, num_objects: int, released: bool) -> Any:
    object_attn = L(ObjectAttention)(
        embed_dim=layer.embed_dim, num_heads=layer.self_attn.num_heads, dropout=layer.dropout, batch_first=True
    )
    return L(DualAttentionLayer)(
        object_attn=object_attn,
        num_objects=num_objects,
        object_score="logit_product" if released else "probability_product",
        surplus="attended" if released else "masked",
        **{name: value for name, value in layer.items() if name != "_target_"},
    )


def _add_proposal_head(model: Any) -> None:
    """Add a supervised proposal head to a model whose queries have no boxes; decoder heads keep their initial size."""
    model.projection = L(ProposalProjection)(embed_dim=model.tokenizer.embed_dim)
    model.auxiliary_proposals = L(AuxiliaryProposals)()
    model.heads.proposals = True
    if model.heads.get("size_bias") is None:
        model.heads.size_bias = -2.0
