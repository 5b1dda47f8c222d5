"""The smallest budget at which an object is found: "found from rho = 0.14 on"."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sparse_detr.explain.faithfulness import Target, search
from sparse_detr.explain.interventions import ImageRuns, Intervention, Prediction
from sparse_detr.modeling.selection import TopKSelector

GRID = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
SIZES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, float("inf")))
"""Sizes of objects by their area in pixels of the image, as COCO has them; an area of exactly a limit is larger."""


def has_budget(model: nn.Module) -> bool:
    """Return whether the model can refine any share of the tokens."""
    return isinstance(getattr(model, "selector", None), TopKSelector)


def size_of(target: Target) -> str:
    """Return `small`, `medium` or `large`, of the area of a true object in its file, else of the box."""
    x0, y0, x1, y1 = target.box.tolist()
    area = (x1 - x0) * (y1 - y0) if target.area is None else target.area
    return next(name for name, low, high in SIZES if low <= area < high)


@dataclass(frozen=True, eq=False)
class FoundFrom:
    """At which budgets an object is found.

    Args:
        target: the object.
        budgets: keep ratios, ascending.
        scores: of the object at every budget; 0 where nothing matches it.
        smallest: the smallest keep ratio at which it is found, at least the first of `budgets`; None if it is found at
            none.
        lost_again: larger keep ratios at which it is not found: more tokens are not always better.
    """

    target: Target
    budgets: tuple[float, ...]
    scores: tuple[float, ...]
    smallest: float | None
    lost_again: tuple[float, ...]


def first_found(budgets: Sequence[float], found: Sequence[bool]) -> tuple[float | None, tuple[float, ...]]:
    """Return the smallest budget at which an object is found, and the larger ones at which it is not.

    Args:
        budgets: ascending.
        found: at every budget.
    """
    smallest = next((budget for budget, here in zip(budgets, found, strict=True) if here), None)
    if smallest is None:
        return None, ()
    return smallest, tuple(b for b, here in zip(budgets, found, strict=True) if b > smallest and not here)


def predict_at(runs: ImageRuns, budgets: Sequence[float], *, samples: bool = False) -> dict[float, Prediction]:
    """Return what the model predicts at every keep ratio, ascending.

    Args:
        runs: of the image; its model has a budget.
        budgets: keep ratios.
        samples: keep the samples of the decoder.
    """
    budgets = sorted(budgets)
    predictions = runs.run([Intervention(budget=budget) for budget in budgets], samples=samples)
    return dict(zip(budgets, predictions, strict=True))


def search_budgets(
    runs: ImageRuns,
    targets: Sequence[Target],
    predictions: Mapping[float, Prediction],
    *,
    score_threshold: float,
    bisections: int = 3,
) -> list[FoundFrom]:
    """Search for every target at every budget, and then between the last budget without and the first one with it.

    An object is found if a detection of its class with a score of at least the threshold has an IoU of at least 0.5
    with it. Several objects may be found by one detection.

    Args:
        runs: of the image; its model has a budget.
        targets: objects.
        predictions: at some keep ratios, ascending.
        score_threshold: lowest score of a detection.
        bisections: steps of the search between two budgets, all targets together; 0 for the grid alone.
    """
    budgets = tuple(predictions)
    rows = []
    for target in targets:
        scores = tuple(search(prediction, target)[0] for prediction in predictions.values())
        found = [score >= score_threshold and score > 0 for score in scores]
        rows.append(FoundFrom(target, budgets, scores, *first_found(budgets, found)))
    return _bisected(runs, rows, score_threshold, bisections)


def _bisected(runs: ImageRuns, rows: list[FoundFrom], score_threshold: float, steps: int) -> list[FoundFrom]:
    """Make the smallest budgets exact to a part of the grid's steps."""
    low = {i: max(b for b in row.budgets if b < first) for i, row, first in _found_later(rows)}
    high = {i: first for i, _, first in _found_later(rows)}
    for _ in range(steps):
        middles = sorted({(low[i] + high[i]) / 2 for i in low})
        if not middles:
            break
        predictions = predict_at(runs, middles)
        for i in low:
            middle = (low[i] + high[i]) / 2
            score = search(predictions[middle], rows[i].target)[0]
            low[i], high[i] = (low[i], middle) if score >= score_threshold and score > 0 else (middle, high[i])
    return [replace(row, smallest=high.get(i, row.smallest)) for i, row in enumerate(rows)]


def _found_later(rows: Sequence[FoundFrom]) -> list[tuple[int, FoundFrom, float]]:
    """Return number, row and smallest budget of the objects that are found, but not at the smallest budget of all."""
    found = [(i, row, row.smallest) for i, row in enumerate(rows) if row.smallest is not None]
    return [(i, row, first) for i, row, first in found if first > row.budgets[0]]


def by_size(rows: Sequence[FoundFrom]) -> dict[str, dict[str, float | int | None]]:
    """Return for every size: the number of objects, how many are never found, and the median smallest budget."""
    summary: dict[str, dict[str, float | int | None]] = {}
    for name, *_ in SIZES:
        smallest = [row.smallest for row in rows if size_of(row.target) == name]
        known = [value for value in smallest if value is not None]
        summary[name] = {
            "objects": len(smallest),
            "never_found": len(smallest) - len(known),
            "median": statistics.median(known) if known else None,
        }
    return summary
