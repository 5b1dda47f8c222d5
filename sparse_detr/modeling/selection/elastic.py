"""Budgets of elastic training: one checkpoint learns to serve every share of the tokens.

Every image of a training batch has a share of its own, so a step costs one forward pass, at the largest share. After
slimmable networks and their sandwich rule (Yu and Huang, ICCV 2019), which train the smallest, the largest and random
widths in every step, but there with a forward pass for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_detr.modeling.selection.budgets import RandomBudget
from sparse_detr.modeling.selection.steering import MixedBudget
from sparse_detr.structures import Pyramid, TokenSelection

FEWEST = 3
"""Shares that are drawn at least: the smallest, the largest and a random one."""


@dataclass(frozen=True, kw_only=True)
class ElasticBudget(RandomBudget):
    """A budget that gives every image of a batch its own share, drawn anew in every call.

    One image gets the smallest share, one the largest, all others a uniform one. Which image gets which is random too.
    Smaller batches get the first shares of such a deal for three images: the two images of a batch get two of
    smallest, largest and uniform, and a single image one of them, each equally often.

    As of `RandomBudget`, all numbers come from PyTorch's global CPU generator.

    Args:
        budget, min_keep_ratio, max_keep_ratio: see `RandomBudget`.
    """

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        budgets = [self.with_keep_ratio(share) for share in self.deal(pyramid.batch_size)]
        return MixedBudget(budgets).select(ranking, pyramid)

    def deal(self, batch_size: int) -> list[float]:
        """Draw the shares of a batch of images."""
        number = max(batch_size, FEWEST)
        shares = [self.min_keep_ratio, self.max_keep_ratio, *(self.draw() for _ in range(number - 2))]
        return [shares[i] for i in torch.randperm(number)[:batch_size]]
