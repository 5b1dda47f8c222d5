"""Everything that is found out about one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparse_detr.analysis.tokens import object_tokens, watch_object_rows, watch_sampled_points
from sparse_detr.errors import UserError
from sparse_detr.explain.compare import Difference, compare_models
from sparse_detr.explain.faithfulness import Explainer, Explanation, Target, list_targets
from sparse_detr.explain.interventions import ImageRuns, Intervention, Prediction, why_not_editable
from sparse_detr.explain.ledger import Ledger, make_ledger
from sparse_detr.explain.minimal_budget import GRID, FoundFrom, has_budget, predict_at, search_budgets
from sparse_detr.explain.sanity import Sanity, check_sanity
from sparse_detr.modeling.selection import AnyBudget, LevelBudget, MassBudget, budget_of_call
from sparse_detr.visualization.token_maps import TokenMaps, token_maps


@dataclass(frozen=True)
class Choices:
    """What to find out.

    Args:
        score_threshold: lowest score of a detection.
        detections: numbers of the detections to explain, from 1, best first; empty for the best `count`.
        count: see `detections`.
        draws: of random tokens.
        budgets: keep ratios to try; the budget that is explained is added.
        rounds: of timing; 0 for none.
    """

    score_threshold: float = 0.3
    detections: Sequence[int] = ()
    count: int = 3
    draws: int = 3
    budgets: Sequence[float] = GRID
    rounds: int = 5


@dataclass(frozen=True, eq=False)
class BudgetView:
    """What the model does with one budget.

    Args:
        keep_ratio: the share of the tokens in the first layer; None for models without a budget.
        own: whether it is the budget that is explained.
        prediction: with samples, where the decoder has sampling points.
        targets: detections, best first.
    """

    keep_ratio: float | None
    own: bool
    prediction: Prediction
    targets: Sequence[Target]


@dataclass(frozen=True, eq=False)
class ImageStory:
    """Everything about one image.

    Args:
        name: of the image.
        image: (H, W, 3) uint8 RGB.
        runs: of the model.
        maps: of the tokens, at the budget that is explained.
        targets: detections at the budget that is explained, best first.
        truth: true objects; None if they are not known.
        views: at every budget, ascending; the one that is explained alone if the model takes no other.
        explanations: by the number of the detection, from 0.
        found: for every true object, or for every detection of the largest budget where there is no truth; empty for
            models without a budget.
        ledger: of the encoder, with the true objects or the detections.
        not_editable: why no token can be dropped; None if it can.
        sanity: see `check_sanity`; None if it was not asked for.
        difference: to another model; None if there is none.
    """

    name: str
    image: np.ndarray
    runs: ImageRuns
    maps: TokenMaps
    targets: Sequence[Target]
    truth: Sequence[Target] | None
    views: Sequence[BudgetView]
    explanations: dict[int, Explanation]
    found: Sequence[FoundFrom]
    ledger: Ledger
    not_editable: str | None = None
    sanity: Sanity | None = None
    difference: Difference | None = None

    @property
    def own_view(self) -> int:
        """Number of the view with the budget that is explained."""
        return next(i for i, view in enumerate(self.views) if view.own)


def explain_image(
    model: Any,
    item: dict[str, Any],
    image: np.ndarray,
    *,
    name: str,
    choices: Choices,
    truth: Sequence[Target] | None = None,
    random_model: Any = None,
    other: tuple[Any, dict[str, Any]] | None = None,
    budget: AnyBudget | None = None,
) -> ImageStory:
    """Find out everything about one image.

    Args:
        model: a `GeneralizedDETR` in eval mode.
        item: the image as an input of the model.
        image: (H, W, 3) uint8 RGB.
        name: of the image.
        choices: what to find out.
        truth: true objects, on any device; None if they are not known.
        random_model: the model with random weights, for the sanity check; None for no check.
        other: another model, and the image as its input, to compare with.
        budget: what is explained, as in a call of the model; None for the model's own budget.

    Raises:
        UserError: a chosen detection does not exist, or the encoder has no layers.
    """
    with watch_object_rows(model.encoder) as rows, watch_sampled_points(model.decoder.encoder) as points:
        runs = ImageRuns(model, item, budget=budget)
    maps = token_maps(runs.output, objects=object_tokens(runs.output.selection, rows), points=points)
    truth = None if truth is None else [target.to(runs.pyramid.device) for target in truth]
    targets = list_targets(runs.prediction, choices.score_threshold)
    not_editable = why_not_editable(model)
    views = _views(runs, choices, targets, not_editable)
    explanations = {} if not_editable else _explain(runs, targets, choices)
    return ImageStory(
        name=name,
        image=image,
        runs=runs,
        maps=maps,
        targets=targets,
        truth=truth,
        views=views,
        explanations=explanations,
        found=_found(runs, views, views[-1].targets if truth is None else truth, choices),
        ledger=make_ledger(runs, targets if truth is None else truth, rounds=choices.rounds),
        not_editable=not_editable,
        sanity=None
        if random_model is None or not_editable
        else check_sanity(runs, list(explanations.values()), random_model, count=choices.count, draws=choices.draws),
        difference=None
        if other is None
        else compare_models(runs, ImageRuns(*other), truth, score_threshold=choices.score_threshold),
    )


def _views(runs: ImageRuns, choices: Choices, targets: Sequence[Target], not_editable: str | None) -> list[BudgetView]:
    if not_editable:
        return [BudgetView(None, True, runs.prediction, targets)]
    own = runs.run([Intervention()], samples=True)[0]
    if not has_budget(runs.model):
        return [BudgetView(None, True, own, targets)]
    own_ratio = _own_ratio(runs)
    views = [BudgetView(_kept_share(runs) if own_ratio is None else own_ratio, True, own, targets)]
    others = [budget for budget in choices.budgets if budget != own_ratio]
    for budget, prediction in predict_at(runs, others, samples=True).items():
        found = list_targets(prediction, choices.score_threshold)
        views.append(BudgetView(budget, False, prediction, found))
    return sorted(views, key=lambda view: view.keep_ratio or 0)


def _own_ratio(runs: ImageRuns) -> float | None:
    """Return the keep ratio of the budget that is explained; None if it is no share of all tokens."""
    budget = budget_of_call(runs.budget, runs.model.selector.budget)
    return None if isinstance(budget, LevelBudget | MassBudget) else budget.keep_ratio


def _kept_share(runs: ImageRuns) -> float:
    """Return the share of the tokens that the first layer refines."""
    return int(runs.kept[0].sum()) / int((~runs.pyramid.padding_mask[0]).sum())


def _explain(runs: ImageRuns, targets: Sequence[Target], choices: Choices) -> dict[int, Explanation]:
    numbers = [number - 1 for number in choices.detections] or list(range(min(choices.count, len(targets))))
    if wrong := [number + 1 for number in numbers if not 0 <= number < len(targets)]:
        raise UserError(
            f"there is no detection {wrong[0]}: {len(targets)} have a score of at least {choices.score_threshold:g}; "
            "give a smaller number, or a lower score threshold"
        )
    if not numbers:
        return {}
    explainer = Explainer(runs, draws=choices.draws)
    return {number: explainer.explain(targets[number]) for number in numbers}


def _found(
    runs: ImageRuns, views: Sequence[BudgetView], objects: Sequence[Target], choices: Choices
) -> list[FoundFrom]:
    if not has_budget(runs.model):
        return []
    tried = [view for view in views if not view.own or _own_ratio(runs) is not None]
    predictions = {view.keep_ratio: view.prediction for view in tried if view.keep_ratio is not None}
    return search_budgets(runs, objects, predictions, score_threshold=choices.score_threshold)
