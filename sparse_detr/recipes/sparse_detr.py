"""Sparse DETR (Roh et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from detectron2.config import LazyCall as L

from sparse_detr.modeling.heads import PredictionHead, ProposalProjection
from sparse_detr.modeling.selection import (
    EvenBudget,
    LearnedScorer,
    LevelBudget,
    ObjectnessScorer,
    RandomScorer,
    ScoringNetwork,
    TopKSelector,
)
from sparse_detr.modeling.training import AttentionMapSupervision
from sparse_detr.recipes.deformable_detr import deformable_detr_topk
from sparse_detr.recipes.dino import dino
from sparse_detr.recipes.elastic import elastic
from sparse_detr.recipes.shared import split_options

Scorer = Literal["attention_map", "objectness", "random"]


def sparse_detr(
    *,
    keep_ratio: float = 0.3,
    level_shares: Sequence[float] | None = None,
    inference_keep_ratio: float | None = None,
    scorer: Scorer = "attention_map",
    encoder_auxiliary_loss: bool = True,
    base: Callable[..., Any] = deformable_detr_topk,
    **options: Any,
) -> Any:
    """Return the LazyCall of Sparse DETR: `base` with an encoder that refines the best `keep_ratio` of the tokens.

    Args:
        keep_ratio: share of the tokens, rho in the paper.
        level_shares: a share for every level instead, fine to coarse, see `LevelBudget`; None for `keep_ratio`.
        inference_keep_ratio: another share at inference; None for `keep_ratio`.
        scorer: `attention_map`, a network that learns the decoder's attention map; `objectness`, a detection head on
            the backbone's features; `random`, random numbers (section 4.3).
        base: the recipe of the dense detector.
        options: options of `elastic` and of `base`.
    """
    own, others = split_options(options, elastic)
    model = base(encoder_auxiliary_loss=encoder_auxiliary_loss, **others)
    sparsify(
        model,
        keep_ratio=keep_ratio,
        level_shares=level_shares,
        inference_keep_ratio=inference_keep_ratio,
        scorer=scorer,
        released=options.get("behavior") == "released",
    )
    return elastic(model, **own)


def sparsify(
    model: Any,
    *,
    keep_ratio: float,
    level_shares: Sequence[float] | None = None,
    inference_keep_ratio: float | None = None,
    scorer: Scorer = "attention_map",
    released: bool = False,
) -> Any:
    """Give a dense model an encoder that refines the best `keep_ratio` of the tokens.

    Args:
        model: LazyCall of a detector with a deformable encoder; it is changed in place and returned.
        keep_ratio, level_shares, inference_keep_ratio, scorer: see `sparse_detr`.
        released: as the public implementation treats padding.
    """
    embed_dim = model.tokenizer.embed_dim
    if scorer != "random":
        model.projection = L(ProposalProjection)(embed_dim=embed_dim)
    model.selector = L(TopKSelector)(
        scorer=_scorer(scorer, embed_dim, released),
        budget=_budget(model, keep_ratio, level_shares),
        inference_keep_ratio=inference_keep_ratio,
        padding="lowest" if released else "excluded",
    )
    if scorer == "attention_map":
        model.supervision = L(AttentionMapSupervision)(padding="negative" if released else "ignored")
    return model


def _budget(model: Any, keep_ratio: float, level_shares: Sequence[float] | None) -> Any:
    if level_shares is None:
        return L(EvenBudget)(keep_ratio=keep_ratio)
    if len(level_shares) != model.tokenizer.num_levels:
        raise ValueError(
            f"level_shares has {len(level_shares)} shares, but the model {model.tokenizer.num_levels} levels; give one "
            "for every level, fine to coarse"
        )
    return L(LevelBudget)(shares=list(level_shares), schedule=())


def sparse_dino(**options: Any) -> Any:
    """Return the LazyCall of DINO with the encoder of Sparse DETR (a row in the tables of the Focus-DETR paper)."""
    return sparse_detr(base=dino, **options)


def _scorer(name: str, embed_dim: int, released: bool) -> Any:
    if name == "attention_map":
        network = L(ScoringNetwork)(embed_dim=embed_dim, mean_over="all" if released else "real")
        return L(LearnedScorer)(network=network)
    if name == "objectness":
        head = L(PredictionHead)(embed_dim=embed_dim, num_classes="${....num_classes}")
        return L(ObjectnessScorer)(head=head)
    if name == "random":
        return L(RandomScorer)()
    raise ValueError(f"scorer must be attention_map, objectness or random, got {name!r}")
