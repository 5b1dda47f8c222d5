"""Score every token, and keep the best within a budget (Sparse DETR, sections 3.1 and 3.2).

The budget is an argument of the call; without one, the model uses its own. From the geometry of the batch it tells how
many tokens every encoder layer refines. No weight depends on the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.modeling.selection.budgets import Budget, EvenBudget
from sparse_detr.modeling.selection.steering import AnyBudget, MassBudget, budget_of_call
from sparse_detr.structures import (
    AllTokens,
    PredictionGroup,
    Tokens,
    TokenSelection,
    geometry_dtype,
)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """A score for every token.

    Args:
        values: (B, N), tokens with higher scores are refined first; undefined on padding.
        predictions: class and box predictions of the scorer, supervised like a decoder layer; None if it has none.
    """

    values: Tensor
    predictions: PredictionGroup | None = None


class ScoringNetwork(nn.Module):
    """A network that turns the features of a token and the mean features of its image into one score.

    Args:
        embed_dim: C.
        mean_over: `real` takes the mean over valid tokens; `all`, over padding too, as the public implementation.
    """

    def __init__(self, *, embed_dim: int, mean_over: Literal["real", "all"] = "real"):
        super().__init__()
        self.mean_over = mean_over
        half, quarter = embed_dim // 2, embed_dim // 4
        self.norm = nn.LayerNorm(embed_dim)
        self.embed = nn.Linear(embed_dim, embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(embed_dim, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 1)
        )

    def forward(self, x: Tensor, padding_mask: Tensor, gain: Tensor | None = None) -> Tensor:
        """Return (B, N) scores of (B, N, C) tokens; `gain` (B, N) multiplies their normalised features."""
        normed = self.norm(x) if gain is None else self.norm(x) * gain[..., None]
        local, shared = nn.functional.gelu(self.embed(normed)).chunk(2, -1)
        if self.mean_over == "real":
            valid = ~padding_mask[..., None]
            # In at least float32: the sum may be too large for half precision.
            total = (shared * valid).sum(1, keepdim=True, dtype=geometry_dtype(shared.dtype))
            mean = (total / valid.sum(1, keepdim=True)).to(shared.dtype)
        else:
            mean = shared.mean(1, keepdim=True)
        features = torch.cat([local, mean.expand_as(local)], -1)
        with torch.autocast(x.device.type, enabled=False):  # half precision would give many equal scores
            return self.mlp(features.to(self.norm.weight.dtype)).squeeze(-1)


class LearnedScorer(nn.Module):
    """The scoring network on projected tokens; only the loss of its scores trains it.

    Args:
        network: the network.
    """

    def __init__(self, *, network: ScoringNetwork):
        super().__init__()
        self.network = network

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens."""
        projected = proposals.project(tokens.content + tokens.position)
        return TokenScores(self.network(projected, tokens.pyramid.padding_mask))


@dataclass(frozen=True, eq=False)
class Selected:
    """The tokens to refine, with their scores.

    Args:
        selection: the tokens.
        scores: (B, N), to be supervised, finite on padding; None for selectors without scores.
        ranking: (B, N), the scores as the selection ranks them; they differ from `scores` on padding only.
        predictions: see `TokenScores`.
        tokens: other tokens that the encoder reads instead, such as pooled ones; None for the tokens of the image.
    """

    selection: TokenSelection
    scores: Tensor | None = None
    ranking: Tensor | None = None
    predictions: PredictionGroup | None = None
    tokens: Tokens | None = None

    @property
    def refined(self) -> TokenSelection:
        """The rows of the encoder's input that it refines: all of `tokens`, where the selector gives them."""
        return self.selection if self.tokens is None else AllTokens(self.tokens.pyramid, self.tokens.mask)


class KeepAllTokens(nn.Module):
    """The selector of dense encoders: it keeps every token and gives no scores."""

    keep_ratio = mean_keep_ratio = 1.0

    def forward(self, tokens: Tokens, proposals: Proposals, budget: AnyBudget | None = None) -> Selected:
        """Select every token.

        Raises:
            ValueError: the budget keeps fewer than all tokens.
        """
        chosen = budget_of_call(budget, EvenBudget(keep_ratio=1.0))
        if chosen.keep_ratio != 1 or isinstance(chosen, MassBudget):
            kept = chosen if isinstance(chosen, MassBudget) else f"{chosen.keep_ratio:g} of the tokens"
            raise ValueError(f"this model has a dense encoder; it cannot keep {kept}, only 1.0")
        return Selected(AllTokens(tokens.pyramid))


class TopKSelector(nn.Module):
    """Keeps the best tokens of every image, as many as a budget says.

    Args:
        scorer: tokens -> scores.
        budget: the budget of calls that give none.
        training_budget: another budget in training, such as `ElasticBudget`; None for `budget`.
        inference_keep_ratio: share of the first layer at inference; None for that of `budget`.
        padding: `excluded` ranks padding behind every valid token; `lowest` gives padding the lowest score of the
            batch, through which gradients flow, as the public implementation of Sparse DETR; `ranked_lowest` does so
            for the ranking only and does not change the supervised scores, as the public implementation of Focus-DETR.

    Raises:
        ValueError: a ratio is not above 0 and at most 1.
    """

    def __init__(
        self,
        *,
        scorer: nn.Module,
        budget: Budget,
        training_budget: Budget | None = None,
        inference_keep_ratio: float | None = None,
        padding: Literal["excluded", "lowest", "ranked_lowest"] = "excluded",
    ):
        super().__init__()
        self.scorer, self.padding = scorer, padding
        self.training_budget = budget if training_budget is None else training_budget
        self.inference_budget = budget if inference_keep_ratio is None else budget.with_keep_ratio(inference_keep_ratio)

    @property
    def budget(self) -> Budget:
        """The model's own budget in the current mode, training or inference."""
        return self.training_budget if self.training else self.inference_budget

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that the first encoder layer refines, in the current mode."""
        return self.budget.keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        """Share of the tokens that an encoder layer refines: the mean over the layers, in the current mode."""
        return self.budget.mean_keep_ratio

    def forward(self, tokens: Tokens, proposals: Proposals, budget: AnyBudget | None = None) -> Selected:
        """Select tokens.

        Args:
            tokens: all tokens.
            proposals: a box for every token.
            budget: see `budget_of_call`; None for the model's own budget.

        Raises:
            ValueError: the budget is out of range, or no budget at all.
        """
        scored: TokenScores = self.scorer(tokens, proposals)
        ranking = scored.values
        if tokens.pyramid.has_padding:
            lowest = ranking.new_tensor(float("-inf")) if self.padding == "excluded" else ranking.min()
            ranking = ranking.masked_fill(tokens.pyramid.padding_mask, lowest)
        selection = budget_of_call(budget, self.budget).select(ranking, tokens.pyramid)
        scores = ranking if self.padding == "lowest" else scored.values
        return Selected(selection, scores, ranking, scored.predictions)
