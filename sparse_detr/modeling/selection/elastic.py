"""Budgets of elastic training: one checkpoint learns to serve every share of the tokens.

Every image of a training batch has a budget of its own, so a step costs one forward pass, at the largest of them. After
slimmable networks and their sandwich rule (Yu and Huang, ICCV 2019), which train the smallest, the largest and random
widths in every step, but there with a forward pass for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sparse_detr.modeling.selection.budgets import Budget, RandomBudget, check_keep_ratio
from sparse_detr.modeling.selection.steering import LevelBudget, MixedBudget, budget_of_call
from sparse_detr.structures import Pyramid, TokenSelection

FEWEST = 3
"""Values that are dealt at least: the smallest, the largest and a random one."""

Value = TypeVar("Value")


def deal(
    smallest: Value, largest: Value, draw: Callable[[], Value], number: int, generator: torch.Generator | None = None
) -> list[Value]:
    """Deal values to `number` receivers: the smallest to one, the largest to one, drawn ones to all others.

    Who gets which is random. Fewer than three receivers get the first values of a deal to three: two get two of
    smallest, largest and drawn, and one gets one of them, each equally often.

    Args:
        draw: returns a random value.
        generator: of the order; None for PyTorch's global CPU generator.
    """
    dealt = max(number, FEWEST)
    values = [smallest, largest, *(draw() for _ in range(dealt - 2))]
    return [values[i] for i in torch.randperm(dealt, generator=generator)[:number].tolist()]


@dataclass(frozen=True, kw_only=True)
class ElasticBudget(RandomBudget):
    """A budget that gives every image of a batch a share of its own, drawn anew in every call; see `deal`.

    All numbers come from PyTorch's global CPU generator, with the same consequences as for `RandomBudget`.

    Args:
        budget, min_keep_ratio, max_keep_ratio: see `RandomBudget`.
        level_ranges: for every level, fine to coarse, the two ends of the range of its share. With it, half of the
            drawn budgets have a share for every level, a `LevelBudget`. () draws none.

    Raises:
        ValueError: as of `RandomBudget`; or a range of a level has no two ends in order, above 0 and at most 1.
    """

    level_ranges: Sequence[Sequence[float]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "level_ranges", tuple(tuple(ends) for ends in self.level_ranges))
        for ends in self.level_ranges:
            for share in ends:
                check_keep_ratio(share)
            if len(ends) != 2 or ends[0] > ends[1]:
                raise ValueError(f"the range of a level is {list(ends)}; give two ends, the smaller first")

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        return MixedBudget(self.deal(pyramid.batch_size)).select(ranking, pyramid)

    def deal(self, batch_size: int) -> list[Budget]:
        """Draw the budgets of a batch of images."""
        smallest, largest = self.with_keep_ratio(self.min_keep_ratio), self.with_keep_ratio(self.max_keep_ratio)
        return deal(smallest, largest, self._draw_budget, batch_size)

    def _draw_budget(self) -> Budget:
        if not self.level_ranges or torch.rand(()) < 0.5:
            return self.with_keep_ratio(self.draw())
        smallest, largest = torch.tensor(self.level_ranges, dtype=torch.float64).unbind(1)
        shares = smallest + (largest - smallest) * torch.rand(len(smallest), dtype=torch.float64)
        return budget_of_call(LevelBudget(shares=shares.tolist()), self.budget)
