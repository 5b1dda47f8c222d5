"""PnP-DETR (Wang et al., ICCV 2021): DETR whose encoder reads polled and pooled tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.modeling.selection import MLPScorer, PollAndPool, RandomBudget, RoundedDownBudget, TokenPool
from sparse_detr.modeling.training import PolledScorePenalty
from sparse_detr.recipes.backbones import BackboneSpec, resnet
from sparse_detr.recipes.detr import detr
from sparse_detr.recipes.shared import Behavior, range_ends


def pnp_detr(
    *,
    backbone: BackboneSpec | None = None,
    keep_ratio: float = 1 / 3,
    training_keep_ratios: Sequence[float] = (1 / 3, 0.8),
    num_pooled: int | None = None,
    behavior: Behavior = "exact",
    **options: Any,
) -> Any:
    """Return the LazyCall of PnP-DETR.

    Args:
        backbone: a backbone with one map; C5 of ResNet-50 if None.
        keep_ratio: share of the tokens that are polled at inference, alpha in the paper.
        training_keep_ratios: ends of the range from which every training step draws its share; equal ends fix it.
        num_pooled: number of pooled tokens; None takes 100 for maps of stride 16 or less (DC5), else 30.
        behavior: `exact`, or `released` for models with the weights of the public implementation.
        options: options of `detr`.

    Raises:
        ValueError: the backbone has several maps, or `training_keep_ratios` are not two.
    """
    backbone = backbone or resnet(50, num_maps=1)
    model = detr(backbone=backbone, behavior=behavior, **options)
    embed_dim = model.tokenizer.embed_dim
    if num_pooled is None:
        num_pooled = 100 if model.tokenizer.stride <= 16 else 30
    smallest, largest = range_ends("training_keep_ratios", training_keep_ratios)
    released = behavior == "released"
    model.selector = L(PollAndPool)(
        scorer=L(MLPScorer)(embed_dim=embed_dim),
        pool=L(TokenPool)(embed_dim=embed_dim, num_pooled=num_pooled),
        budget=L(RandomBudget)(
            budget=L(RoundedDownBudget)(keep_ratio=keep_ratio, precision="single" if released else "double"),
            min_keep_ratio=smallest,
            max_keep_ratio=largest,
        ),
        inference_keep_ratio="${.budget.budget.keep_ratio}",
    )
    model.supervision = L(PolledScorePenalty)(weight=1e-4, rows="all" if released else "valid")
    return model
