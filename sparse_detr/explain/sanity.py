"""The sanity check of an explanation: with random weights it must change (Adebayo et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from statistics import fmean
from typing import Any

from scipy.stats import spearmanr
from torch import Tensor

from sparse_detr.explain.faithfulness import Comparison, Explainer, Explanation, list_targets
from sparse_detr.explain.interventions import ImageRuns


@dataclass(frozen=True)
class Sanity:
    """An image seen by the trained model and by the same model with random weights.

    Args:
        correlation: rank correlation (Spearman) of the token scores, or of the decoder's attention to the tokens where
            the model has no scores. 1: the same map; 0: unrelated.
        map_name: what was compared.
        trained, random: mean faithfulness number of the explained detections, and of the best ones of the random model,
            with tokens under the box dropped; None without any.
        random_score: mean score of the detections of the random model, which are hardly any: where they depend on
            which tokens become queries, their faithfulness number need not be 0.
    """

    correlation: float | None
    map_name: str
    trained: float | None
    random: float | None
    random_score: float | None = None


def check_sanity(
    trained: ImageRuns, explanations: Sequence[Explanation], random_model: Any, *, count: int, draws: int
) -> Sanity:
    """Compare the maps and the faithfulness of a trained model with those of a model with random weights.

    Args:
        trained: runs of the trained model on the image.
        explanations: of its detections.
        random_model: the same model with random weights, in eval mode.
        count: number of detections of the random model; the best ones, whatever their score.
        draws: of random tokens.
    """
    random = ImageRuns(random_model, trained.item, budget=trained.budget)
    name, correlation = rank_correlation(trained, random)
    explainer = Explainer(random, draws=draws)
    targets = list_targets(random.prediction, 0.0, most=count)
    return Sanity(
        correlation=correlation,
        map_name=name,
        trained=_mean([explanation.dropped for explanation in explanations]),
        random=_mean([explainer.drop_box(target) for target in targets]),
        random_score=fmean(target.score or 0.0 for target in targets) if targets else None,
    )


def rank_correlation(one: ImageRuns, other: ImageRuns) -> tuple[str, float | None]:
    """Return which map of the tokens two models were compared by, and Spearman's correlation on valid tokens.

    The correlation is None if they have no map in common, or a map is the same on all tokens.
    """
    valid = ~one.pyramid.padding_mask[0]
    for name in ("token_scores", "attention_map"):
        maps: list[Tensor | None] = [getattr(runs.output, name) for runs in (one, other)]
        if maps[0] is not None and maps[1] is not None:
            value = float(spearmanr(*(values[0][valid].cpu().numpy() for values in maps if values is not None))[0])
            return name.replace("_", " "), None if isnan(value) else value
    return "no map", None


def _mean(found: Sequence[Comparison | None]) -> float | None:
    """Return the mean faithfulness number; None without any."""
    numbers = [comparison.faithfulness for comparison in found if comparison is not None]
    return sum(numbers) / len(numbers) if numbers else None
