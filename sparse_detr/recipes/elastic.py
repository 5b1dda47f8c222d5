"""Elastic training: one checkpoint that serves every budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.modeling.detector import TrainingIteration
from sparse_detr.modeling.effort import ElasticEffort
from sparse_detr.modeling.selection import ElasticBudget, LevelSelector
from sparse_detr.modeling.training import Distillation
from sparse_detr.recipes.shared import Behavior, range_ends


def elastic(
    model: Any,
    *,
    training_keep_ratios: Sequence[float] | None = None,
    training_level_shares: Sequence[Sequence[float]] | None = None,
    training_decoder_layers: Sequence[int] | None = None,
    training_num_queries: Sequence[int] | None = None,
    distillation_weight: float | None = None,
    behavior: Behavior = "exact",
) -> Any:
    """Let training draw what a step runs of a model, so that its one checkpoint serves every budget.

    A share and a number of queries are drawn for every image, a number of decoder layers for every step. Inference and
    weights are those of the given model.

    Args:
        model: LazyCall of a detector; it is changed in place and returned.
        training_keep_ratios: ends of the range of the share of tokens, such as 0.1 and 1.0, see `ElasticBudget`; None
            trains with the model's own budget.
        training_level_shares: for every level, fine to coarse, ends of the range of its share; half of the drawn
            budgets then have a share for every level. None draws no such budgets.
        training_decoder_layers: ends of the range of the number of decoder layers, see `ElasticEffort`; None trains all
            layers. With several processes, set `train.ddp.find_unused_parameters=True`.
        training_num_queries: ends of the range of the number of queries, for two-stage models; None trains all queries.
        distillation_weight: the whole model runs in every step too, is trained, and teaches the drawn part with this
            weight, see `Distillation`. A step then takes up to twice as long. None does not.
        behavior: of the model; it must be `exact`.

    Raises:
        ValueError: the model is `released`, has no budget, or not so many levels, or selects levels and cannot teach
            itself, or a range has not two ends.
    """
    ranges = (training_keep_ratios, training_level_shares, training_decoder_layers, training_num_queries)
    if all(value is None for value in (*ranges, distillation_weight)):
        return model
    if behavior == "released":
        raise ValueError(
            "the released behavior also trains rows that only fill the batch, so images cannot have budgets of their "
            "own; use behavior exact with elastic training"
        )
    if training_keep_ratios is not None:
        model.selector.training_budget = _budget(model, training_keep_ratios, training_level_shares or ())
    elif training_level_shares is not None:
        raise ValueError("training_level_shares needs training_keep_ratios, whose ends are in every batch; set both")
    if training_decoder_layers is not None or training_num_queries is not None:
        model.training_effort = L(ElasticEffort)(
            layer_range=_ends("training_decoder_layers", training_decoder_layers),
            query_range=_ends("training_num_queries", training_num_queries),
            iteration=L(TrainingIteration)(),
        )
    if distillation_weight is not None:
        if model.selector._target_ is LevelSelector:
            raise ValueError(
                "distillation_weight needs a whole model to learn from, and this one always leaves out levels"
            )
        model.distillation = L(Distillation)(weight=distillation_weight)
    return model


def _budget(model: Any, keep_ratios: Sequence[float], level_ranges: Sequence[Sequence[float]]) -> Any:
    if "budget" not in model.selector:
        raise ValueError("training_keep_ratios needs an encoder that refines a share of the tokens; use a sparse model")
    levels = model.tokenizer.get("num_levels")
    if level_ranges and levels is not None and len(level_ranges) != levels:
        raise ValueError(
            f"training_level_shares has {len(level_ranges)} ranges, but the model {levels} levels; give one for every "
            "level, fine to coarse"
        )
    smallest, largest = range_ends("training_keep_ratios", keep_ratios)
    return L(ElasticBudget)(
        budget="${..budget}",
        min_keep_ratio=smallest,
        max_keep_ratio=largest,
        level_ranges=[list(ends) for ends in level_ranges],
    )


def _ends(name: str, values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else list(range_ends(name, values))
