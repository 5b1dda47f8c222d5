"""Budgets that a caller steers with: a share for every level, as many tokens as hold a share of the saliency, or one
budget for every image.

A call takes a `Budget`, a number, a text or a list of these; `budget_of_call` says what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, Union

import torch
from torch import Tensor

from sparse_detr.modeling.selection.budgets import (
    Budget,
    check_keep_ratio,
    check_schedule,
    count_valid_tokens,
    share_of,
)
from sparse_detr.structures import CascadedTokens, Pyramid, TokenSelection, TopKTokens, top_token_cascade, top_tokens

FINER = 4
"""Tokens of a level for each token of the next coarser one."""


@dataclass(frozen=True, kw_only=True)
class LevelBudget:
    """The best tokens of every level: min(int(n * share) + 1, n) of n valid tokens of a level.

    Args:
        shares: one for every level, fine to coarse, above 0 and at most 1.
        schedule: as in `CascadedBudget`; () refines the same tokens in every layer; None takes that of the model.

    Raises:
        ValueError: a share is out of range, or there is none.
    """

    shares: Sequence[float]
    schedule: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.shares:
            raise ValueError("there are no shares; give one for every level, fine to coarse, such as 0.25,0.5,1")
        object.__setattr__(self, "shares", tuple(float(share) for share in self.shares))
        for share in self.shares:
            check_keep_ratio(share)
        _check_schedule(self)

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens of a large image, each level of which has a quarter of the cells of the finer one."""
        weights = [FINER**-level for level in range(len(self.shares))]
        return sum(w * share for w, share in zip(weights, self.shares, strict=True)) / sum(weights)

    @property
    def mean_keep_ratio(self) -> float:
        return self.keep_ratio * _mean(self.schedule)

    def __str__(self) -> str:
        """Return the budget as `parse_budget` reads it."""
        return "levels:" + _listed(self.shares)

    def with_keep_ratio(self, keep_ratio: float) -> LevelBudget:
        """Return a budget with all shares multiplied by one factor, up to 1, so that together they are this share."""
        check_keep_ratio(keep_ratio)
        low, high = 0.0, 1 / min(self.shares)
        for _ in range(60):  # the share grows with the factor, in pieces
            factor = (low + high) / 2
            tried = self._times(factor)
            low, high = (factor, high) if tried.keep_ratio < keep_ratio else (low, factor)
        return self._times(high)

    def _times(self, factor: float) -> LevelBudget:
        return replace(self, shares=tuple(min(share * factor, 1.0) for share in self.shares))

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        levels = len(pyramid.spatial_shapes)
        if len(self.shares) != levels:
            raise ValueError(
                f"the budget has {len(self.shares)} shares, {list(self.shares)}, but the model {levels} levels; give "
                "one share for every level, fine to coarse"
            )
        ranking = ranking.detach().masked_fill(pyramid.padding_mask, float("-inf"))
        valid = pyramid.valid_sizes.prod(-1)
        counts = torch.stack([share_of(valid[:, i], share) for i, share in enumerate(self.shares)], 1)
        kept = torch.cat(
            [
                _best_of(level, count, share_of(level.shape[1], share))
                for level, count, share in zip(pyramid.split(ranking), counts.unbind(1), self.shares, strict=True)
            ],
            1,
        )
        most = sum(share_of(size, share) for size, share in zip(pyramid.level_sizes, self.shares, strict=True))
        best = ranking.masked_fill(~kept, float("-inf"))
        return _selected(best, counts.sum(1), most, self.schedule, pyramid)


def _best_of(ranking: Tensor, counts: Tensor, rows: int) -> Tensor:
    """Return (B, n) bool, True on the `counts` (B,) tokens with the highest (B, n) ranking; `rows` is the most."""
    best = ranking.topk(rows, dim=1).indices
    kept = torch.arange(rows, device=ranking.device) < counts[:, None]
    return torch.zeros_like(ranking, dtype=torch.bool).scatter(1, best, kept)


@dataclass(frozen=True, kw_only=True)
class MassBudget:
    """As many of the best tokens of every image as hold a share of its saliency, the sum of the sigmoids of its scores.

    Args:
        mass: share of the saliency, above 0 and at most 1.
        min_keep_ratio, max_keep_ratio: the smallest and the largest share of an image's tokens.
        schedule: as in `CascadedBudget`; () refines the same tokens in every layer; None takes that of the model.

    Raises:
        ValueError: a share is out of range, or the smallest is above the largest.
    """

    mass: float
    min_keep_ratio: float = 0.02
    max_keep_ratio: float = 1.0
    schedule: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass must be above 0 and at most 1, got {self.mass}; 0.9 is usual")
        check_keep_ratio(self.min_keep_ratio)
        check_keep_ratio(self.max_keep_ratio)
        if self.min_keep_ratio > self.max_keep_ratio:
            raise ValueError(
                f"min_keep_ratio {self.min_keep_ratio} is above max_keep_ratio {self.max_keep_ratio}; exchange them"
            )
        _check_schedule(self)

    @property
    def keep_ratio(self) -> float:
        """The largest share of an image: what it keeps depends on its scores."""
        return self.max_keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        return self.keep_ratio * _mean(self.schedule)

    def __str__(self) -> str:
        """Return the budget as `parse_budget` reads it."""
        return "mass:" + _listed((self.mass, self.min_keep_ratio, self.max_keep_ratio))

    def with_keep_ratio(self, keep_ratio: float) -> MassBudget:
        """Return the same budget with another largest share of an image."""
        return replace(self, max_keep_ratio=keep_ratio, min_keep_ratio=min(keep_ratio, self.min_keep_ratio))

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        ranking = ranking.detach().masked_fill(pyramid.padding_mask, float("-inf"))
        saliency = ranking.double().sigmoid().sort(1, descending=True).values.cumsum(1)
        needed = (saliency < self.mass * saliency[:, -1:]).sum(1) + 1
        valid = count_valid_tokens(pyramid)
        counts = needed.maximum(share_of(valid, self.min_keep_ratio)).minimum(share_of(valid, self.max_keep_ratio))
        most = share_of(pyramid.num_tokens, self.max_keep_ratio)
        return _selected(ranking, counts, most, self.schedule, pyramid)


@dataclass(frozen=True)
class MixedBudget:
    """A budget of its own for every image of the batch.

    Args:
        budgets: one for every image.

    Raises:
        ValueError: there is none; in a call, their number is not that of the images.
    """

    budgets: Sequence[Budget]

    def __post_init__(self) -> None:
        if not self.budgets:
            raise ValueError("there is no budget in the list; give one for every image")

    @property
    def keep_ratio(self) -> float:
        """The mean over the images."""
        return sum(budget.keep_ratio for budget in self.budgets) / len(self.budgets)

    @property
    def mean_keep_ratio(self) -> float:
        return sum(budget.mean_keep_ratio for budget in self.budgets) / len(self.budgets)

    def with_keep_ratio(self, keep_ratio: float) -> MixedBudget:
        """Return budgets that all have this share."""
        return MixedBudget([budget.with_keep_ratio(keep_ratio) for budget in self.budgets])

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        if len(self.budgets) != pyramid.batch_size:
            raise ValueError(
                f"there are {len(self.budgets)} budgets for {pyramid.batch_size} images; give one for every image"
            )
        chosen = [budget.select(ranking, pyramid) for budget in self.budgets]
        layers = [_layers(selection) for selection in chosen]
        number = max(map(len, layers))
        keep = torch.stack([selection.keep[image] for image, selection in enumerate(chosen)])
        counts = [
            torch.stack([_of_layer(kept, layer)[image] for image, kept in enumerate(layers)]) for layer in range(number)
        ]
        exact = pyramid.valid_counts is not None
        rows = [int(count.max()) if exact else pyramid.num_tokens for count in counts]
        best = ranking.detach().masked_fill(~keep, float("-inf"))
        if number == 1:
            return top_tokens(best, counts[0], rows[0], exact=exact)
        return top_token_cascade(best, counts, rows, exact=exact)


def _layers(selection: TokenSelection) -> list[Tensor]:
    """Return for every layer (B,) kept tokens; one entry if all layers keep the same."""
    assert isinstance(selection, TopKTokens)
    layers = selection.layers if isinstance(selection, CascadedTokens) else [selection]
    return [kept.counts for kept in layers]


def _of_layer(counts: Sequence[Tensor], layer: int) -> Tensor:
    return counts[layer] if len(counts) > 1 else counts[0]


AnyBudget = Union[Budget, float, str, Sequence[Union[Budget, float, str]]]  # noqa: UP007 a class and `|` need Python 3.10
"""What a call takes for a budget; see `budget_of_call`."""


def budget_of_call(budget: AnyBudget | None, own: Budget) -> Budget:
    """Return the budget that a call means.

    Args:
        budget: a number is a share for the first layer of the model's own budget; a text is read by `parse_budget`; a
            list has one for every image; None is the model's own budget. A budget without a schedule takes the model's.
        own: the model's own budget.

    Raises:
        ValueError: the budget is out of range, or no budget at all.
    """
    if budget is None:
        return own
    if isinstance(budget, str):
        return budget_of_call(parse_budget(budget), own)
    if isinstance(budget, Sequence):
        return MixedBudget([budget_of_call(one, own) for one in budget])
    if isinstance(budget, Real) and not isinstance(budget, bool):
        return own.with_keep_ratio(float(budget))
    if isinstance(budget, type) or not hasattr(budget, "select") or isinstance(budget, Tensor):
        raise ValueError(
            f"budget is {budget!r}; give a share, above 0 and at most 1, a text like levels:0.25,0.5,1 or mass:0.9, or "
            "a Budget like EvenBudget"
        )
    return _with_schedule(budget, own)


def _with_schedule(budget: Any, own: Budget) -> Budget:
    """Return a budget without a schedule with the model's, if it has one."""
    if getattr(budget, "schedule", ()) is not None:
        return budget
    return replace(budget, schedule=getattr(own, "schedule", ()))


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _check_schedule(budget: LevelBudget | MassBudget) -> None:
    if budget.schedule:
        object.__setattr__(budget, "schedule", check_schedule(budget.schedule))


def _mean(schedule: Sequence[float] | None) -> float:
    return sum(schedule) / len(schedule) if schedule else 1.0


def _selected(
    ranking: Tensor, counts: Tensor, most: int, schedule: Sequence[float] | None, pyramid: Pyramid
) -> TokenSelection:
    """Keep the first `counts` (B,) tokens, at most `most`, in the first layer, and of them the schedule's shares."""
    exact = pyramid.valid_counts is not None
    layers = [(counts.double() * share).long().clamp(min=1) for share in schedule or (1.0,)]
    rows = [int(kept.max()) for kept in layers] if exact else [most] * len(layers)
    if not schedule:
        return top_tokens(ranking, layers[0], rows[0], exact=exact)
    return top_token_cascade(ranking, layers, rows, exact=exact)


class UnknownBudgetError(ValueError):
    """A text is of no kind of budget."""


def parse_budget(text: str) -> float | LevelBudget | MassBudget:
    """Return the budget that a command line names.

    Args:
        text: `0.3`, a share; `levels:0.25,0.5,1`, a share for every level, fine to coarse; `mass:0.9`, as many tokens
            as hold 90 % of the saliency, or `mass:0.9,0.05,0.5` with the smallest and the largest share.

    Raises:
        UnknownBudgetError: the text names no budget.
        ValueError: a share is out of range.
    """
    kind, _, values = text.rpartition(":")
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if kind == "" and len(numbers) == 1 and ":" not in text:
        check_keep_ratio(numbers[0])
        return numbers[0]
    if kind == "levels" and numbers:
        return LevelBudget(shares=numbers)
    if kind == "mass" and len(numbers) == 1:
        return MassBudget(mass=numbers[0])
    if kind == "mass" and len(numbers) == 3:
        return MassBudget(mass=numbers[0], min_keep_ratio=numbers[1], max_keep_ratio=numbers[2])
    raise UnknownBudgetError(
        f"{text!r} is no budget; give a share of the tokens like 0.3, a share for every level like levels:0.25,0.5,1, "
        "or a share of the saliency like mass:0.9"
    )
