"""Score every token, and keep the best within a budget (Sparse DETR, sections 3.1 and 3.2).

A budget is an argument of a call: the model has one of its own, and whoever calls it may give another. It is asked with
the geometry of the batch, and answers for every encoder layer. No weight depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from numbers import Real
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import (
    AllTokens,
    PredictionGroup,
    Pyramid,
    Tokens,
    TokenSelection,
    at_most,
    geometry_dtype,
    top_tokens,
)


@dataclass(frozen=True, eq=False)
class TokenScores:
    """How worth refining every token is.

    Args:
        values: (B, N), higher is more worth refining; undefined on padding.
        predictions: what the scorer predicts besides, to be supervised like a decoder layer.
    """

    values: Tensor
    predictions: PredictionGroup | None = None


class ScoringNetwork(nn.Module):
    """A token's own features, and the mean of the image's, to one score.

    Args:
        embed_dim: C.
        mean_over: `real` tokens, or `all` tokens, padding included, as the public implementation does.
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
        """Score (B, N, C) tokens, whose normalised features are first multiplied by (B, N) `gain`: (B, N)."""
        normed = self.norm(x) if gain is None else self.norm(x) * gain[..., None]
        local, shared = nn.functional.gelu(self.embed(normed)).chunk(2, -1)
        if self.mean_over == "real":
            valid = ~padding_mask[..., None]
            # In wide numbers: the sum may be too much for half precision.
            total = (shared * valid).sum(1, keepdim=True, dtype=geometry_dtype(shared.dtype))
            mean = (total / valid.sum(1, keepdim=True)).to(shared.dtype)
        else:
            mean = shared.mean(1, keepdim=True)
        features = torch.cat([local, mean.expand_as(local)], -1)
        with torch.autocast(x.device.type, enabled=False):  # a ranking by half-precision numbers would be full of ties
            return self.mlp(features.to(self.norm.weight.dtype)).squeeze(-1)


class LearnedScorer(nn.Module):
    """The scoring network on projected tokens; it learns from its own loss alone.

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


Count = TypeVar("Count", int, Tensor)
"""Tokens of one image; or (B,) long, of every image, where only the device knows them."""


class Budget(Protocol):
    """How many tokens of an image the encoder layers refine."""

    keep_ratio: float
    """Share of the tokens that the first layer refines, above 0 and at most 1."""

    @property
    def mean_keep_ratio(self) -> float:
        """Mean share of all layers."""

    def with_keep_ratio(self, keep_ratio: float) -> Budget:
        """Return the same budget with another share in the first layer."""

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        """Return the tokens of highest (B, N) `ranking` within the budget."""


@dataclass(frozen=True, kw_only=True)
class EvenBudget:
    """The same tokens in every layer: min(int(n * keep_ratio) + 1, n) of an image with n real tokens.

    Args:
        keep_ratio: share of the tokens, above 0 and at most 1.

    Raises:
        ValueError: the ratio is out of range.
    """

    keep_ratio: float

    def __post_init__(self) -> None:
        check_keep_ratio(self.keep_ratio)

    @property
    def mean_keep_ratio(self) -> float:
        return self.keep_ratio

    def with_keep_ratio(self, keep_ratio: float) -> EvenBudget:
        return replace(self, keep_ratio=keep_ratio)

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        if pyramid.valid_counts is None:
            counts, most = real_tokens(pyramid), share_of(pyramid.num_tokens, self.keep_ratio)
            return top_tokens(ranking, share_of(counts, self.keep_ratio), most, exact=False)
        kept = [share_of(count, self.keep_ratio) for count in pyramid.valid_counts]
        return top_tokens(ranking, torch.tensor(kept, device=ranking.device), max(kept))


@dataclass(frozen=True, eq=False)
class Selected:
    """The tokens to refine, and why.

    Args:
        selection: the tokens.
        scores: (B, N), to be supervised, finite on padding; None where nothing was scored.
        ranking: (B, N), what the selection ranks by: the scores, but for padding.
        predictions: what the scorer predicts besides.
    """

    selection: TokenSelection
    scores: Tensor | None = None
    ranking: Tensor | None = None
    predictions: PredictionGroup | None = None


class KeepAllTokens(nn.Module):
    """The dense encoder: every token is refined, nothing is scored."""

    keep_ratio = mean_keep_ratio = 1.0

    def forward(self, tokens: Tokens, proposals: Proposals, budget: Budget | float | None = None) -> Selected:
        """Keep every token.

        Raises:
            ValueError: the budget leaves some tokens out.
        """
        share = getattr(budget, "keep_ratio", budget)
        if share is not None and share != 1:
            raise ValueError(f"this model has a dense encoder; it cannot keep {share} of the tokens, only 1.0")
        return Selected(AllTokens(tokens.pyramid))


class TopKSelector(nn.Module):
    """Keep the best tokens of every image within a budget.

    Args:
        scorer: tokens -> scores.
        budget: how many tokens every encoder layer refines, where the call does not say.
        inference_keep_ratio: another share in the first layer at inference; None for the same.
        padding: `excluded` ranks padding behind every real token; `lowest` gives it the lowest score of the batch,
            through which gradients flow, as the public implementation of Sparse DETR does; `ranked_lowest` does so
            for the ranking and leaves the scores that are supervised alone, as that of Focus-DETR does.

    Raises:
        ValueError: a ratio is not above 0 and at most 1.
    """

    def __init__(
        self,
        *,
        scorer: nn.Module,
        budget: Budget,
        inference_keep_ratio: float | None = None,
        padding: Literal["excluded", "lowest", "ranked_lowest"] = "excluded",
    ):
        super().__init__()
        self.scorer, self.padding = scorer, padding
        self.training_budget = budget
        self.inference_budget = budget if inference_keep_ratio is None else budget.with_keep_ratio(inference_keep_ratio)

    @property
    def budget(self) -> Budget:
        """The model's own budget in the mode, training or inference, that the module is in."""
        return self.training_budget if self.training else self.inference_budget

    @property
    def keep_ratio(self) -> float:
        """The share that the first layer refines in the current mode."""
        return self.budget.keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        """The mean share of the encoder layers in the current mode."""
        return self.budget.mean_keep_ratio

    def forward(self, tokens: Tokens, proposals: Proposals, budget: Budget | float | None = None) -> Selected:
        """Select tokens.

        Args:
            tokens: all tokens.
            proposals: a box for every token.
            budget: a share is that of the first layer, in place of the model's own; None for the model's own budget.

        Raises:
            ValueError: the budget is out of range, or none at all.
        """
        scored: TokenScores = self.scorer(tokens, proposals)
        ranking = scored.values
        if tokens.pyramid.has_padding:
            lowest = ranking.new_tensor(float("-inf")) if self.padding == "excluded" else ranking.min()
            ranking = ranking.masked_fill(tokens.pyramid.padding_mask, lowest)
        selection = self._budget_of_call(budget).select(ranking, tokens.pyramid)
        scores = ranking if self.padding == "lowest" else scored.values
        return Selected(selection, scores, ranking, scored.predictions)

    def _budget_of_call(self, budget: Budget | float | None) -> Budget:
        if budget is None:
            return self.budget
        if isinstance(budget, bool | type | Tensor) or not (isinstance(budget, Real) or hasattr(budget, "select")):
            raise ValueError(f"budget is {budget!r}; give a share, above 0 and at most 1, or a Budget like EvenBudget")
        return self.budget.with_keep_ratio(float(budget)) if isinstance(budget, float | Real) else budget


def share_of(count: Count, keep_ratio: float) -> Count:
    """Return the tokens that are kept of `count`: min(int(count * keep_ratio) + 1, count)."""
    if isinstance(count, Tensor):
        return count.minimum((count.double() * keep_ratio).long() + 1)
    return at_most(torch.sym_int(count * keep_ratio) + 1, count)


def real_tokens(pyramid: Pyramid) -> Tensor:
    """Return (B,) long: tokens of every image that are not padding."""
    return pyramid.valid_sizes.prod(-1).sum(-1)


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise `ValueError` for a ratio that is not above 0 and at most 1."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be above 0 and at most 1, got {keep_ratio}; 1 refines every token")
