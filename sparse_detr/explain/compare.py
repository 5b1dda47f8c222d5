"""Two models on one image: what the second one gains and loses, and whether both refine the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparse_detr.explain.faithfulness import Target, list_targets, search
from sparse_detr.explain.interventions import ImageRuns


@dataclass(frozen=True, eq=False)
class Difference:
    """What two models find in one image.

    Args:
        both, lost, gained: objects that both find, only the first, only the second.
        neither: true objects that none finds; empty where no truth is given.
        shared_tokens: refined tokens that both have, as a share of those of either (intersection over union), of every
            level, in the first encoder layer; None where the tokens are not the same grid.
    """

    both: tuple[Target, ...]
    lost: tuple[Target, ...]
    gained: tuple[Target, ...]
    neither: tuple[Target, ...]
    shared_tokens: tuple[float, ...] | None


def compare_models(
    first: ImageRuns, second: ImageRuns, truth: Sequence[Target] | None, *, score_threshold: float
) -> Difference:
    """Compare two models on one image.

    Args:
        first, second: runs of the image.
        truth: true objects; None to compare the detections with each other.
        score_threshold: lowest score of a detection.
    """
    predictions = first.prediction, second.prediction

    def found(target: Target) -> tuple[bool, bool]:
        scores = [search(prediction, target)[0] for prediction in predictions]
        return scores[0] >= score_threshold and scores[0] > 0, scores[1] >= score_threshold and scores[1] > 0

    if truth is None:
        own, others = (list_targets(prediction, score_threshold) for prediction in predictions)
        objects = [*own, *(target for target in others if not found(target)[0])]
    else:
        objects = list(truth)
    groups: dict[tuple[bool, bool], list[Target]] = {}
    for target in objects:
        groups.setdefault(found(target), []).append(target)
    both, lost, gained, neither = (
        tuple(groups.get(key, ())) for key in ((True, True), (True, False), (False, True), (False, False))
    )
    return Difference(both, lost, gained, neither, shared_tokens(first, second))


def shared_tokens(first: ImageRuns, second: ImageRuns) -> tuple[float, ...] | None:
    """Return the intersection over union of the refined tokens of every level; None for different grids."""
    if first.pyramid.spatial_shapes != second.pyramid.spatial_shapes:
        return None
    shares = []
    for level in range(len(first.pyramid.spatial_shapes)):
        here = first.pyramid.cells[:, 0] == level
        one, other = (runs.kept[0] & here for runs in (first, second))
        shares.append(_share(one & other, one | other))
    return tuple(shares)


def _share(part: Tensor, whole: Tensor) -> float:
    total = int(whole.sum())
    return int(part.sum()) / total if total else 1.0
