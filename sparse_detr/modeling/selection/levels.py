"""Coarse levels are refined often, fine levels rarely; nothing is scored or learned (Lite DETR, section 3.2)."""

from __future__ import annotations

from torch import nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.modeling.selection.selector import Selected
from sparse_detr.modeling.selection.steering import AnyBudget
from sparse_detr.structures import AllTokens, CoarseTokens, Tokens, full_layers


class LevelSelector(nn.Module):
    """Selects by level: the last encoder layer of every block refines all tokens, the others the coarse levels only.

    Args:
        num_levels: L.
        num_layers: number of encoder layers.
        high_levels: number of coarse levels, H of "HhLl" in the paper; with all L levels every layer refines all.
        blocks: number of blocks of equally many layers, B of "(A+1)xB" in the paper.

    Raises:
        ValueError: there are not so many levels, or the layers cannot be divided into so many blocks.
    """

    def __init__(self, *, num_levels: int, num_layers: int, high_levels: int, blocks: int):
        super().__init__()
        if not 1 <= high_levels <= num_levels:
            raise ValueError(f"high_levels must be 1 or more, at most the {num_levels} levels, got {high_levels}")
        self.num_levels, self.high_levels = num_levels, high_levels
        self.full_layers = full_layers(num_layers=num_layers, blocks=blocks)

    @property
    def keep_ratio(self) -> float:
        """About the share of the tokens that the first encoder layer refines, if a level has 4 times the next one's."""
        return 1.0 if self.full_layers[0] else self._coarse_share

    @property
    def mean_keep_ratio(self) -> float:
        """About the share of the tokens that an encoder layer refines: the mean over the layers."""
        shares = [1.0 if full else self._coarse_share for full in self.full_layers]
        return sum(shares) / len(shares)

    @property
    def _coarse_share(self) -> float:
        return (4**self.high_levels - 1) / (4**self.num_levels - 1)

    def forward(self, tokens: Tokens, proposals: Proposals, budget: AnyBudget | None = None) -> Selected:
        """Select the tokens of the coarse levels, and all tokens in some layers.

        Raises:
            ValueError: a budget is given.
        """
        if budget is not None:
            raise ValueError(
                f"budget is {budget!r}, but this model refines levels and has no share of tokens to choose; leave the "
                "budget out, and set high_levels and blocks in the config"
            )
        pyramid = tokens.pyramid
        if self.full_layers[0] or self.high_levels == self.num_levels:
            return Selected(AllTokens(pyramid))
        start = sum(pyramid.level_sizes[: -self.high_levels])
        return Selected(CoarseTokens(pyramid, start, self.full_layers))
