"""A budget of its own for every image of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparse_detr.modeling.selection.selector import Budget
from sparse_detr.structures import Pyramid, TokenSelection, join_images


@dataclass(frozen=True, kw_only=True)
class PerImageBudget:
    """A budget for every image of the batch, in the order of the images.

    An image keeps the tokens that it keeps alone. Further rows fill the batch up to the image with most tokens.

    Args:
        budgets: one an image.

    Raises:
        ValueError: there is none, or in `select`, the number is not that of the images.
    """

    budgets: Sequence[Budget]

    def __post_init__(self) -> None:
        object.__setattr__(self, "budgets", tuple(self.budgets))
        if not self.budgets:
            raise ValueError("there are no budgets; give one for every image of the batch")

    @property
    def keep_ratio(self) -> float:
        """The mean over the images."""
        return sum(budget.keep_ratio for budget in self.budgets) / len(self.budgets)

    @property
    def mean_keep_ratio(self) -> float:
        return sum(budget.mean_keep_ratio for budget in self.budgets) / len(self.budgets)

    def with_keep_ratio(self, keep_ratio: float) -> PerImageBudget:
        """Return the budgets of the images, all with this share."""
        return PerImageBudget(budgets=[budget.with_keep_ratio(keep_ratio) for budget in self.budgets])

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        if len(self.budgets) != pyramid.batch_size:
            raise ValueError(
                f"there are {len(self.budgets)} budgets for {pyramid.batch_size} images; give one for every image"
            )
        return join_images(
            [budget.select(ranking[i : i + 1], pyramid.image(i)) for i, budget in enumerate(self.budgets)]
        )
