"""From scores to a selection within a budget (Sparse DETR, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.queries import ProposalProjection, Proposals
from sparse_detr.modeling.selection.scorers import TokenScores
from sparse_detr.structures import AllTokens, PredictionGroup, Tokens, TokenSelection, TopKTokens


@dataclass(frozen=True, eq=False)
class Selected:
    """Args:
    selection: the tokens to refine.
    scores: (B, N), filled on padding; None where nothing was scored.
    predictions: what the scorer predicts besides.
    """

    selection: TokenSelection
    scores: Tensor | None = None
    predictions: PredictionGroup | None = None


class KeepAllTokens(nn.Module):
    """The dense encoder: every token is refined, nothing is scored."""

    keep_ratio = 1.0

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection | None) -> Selected:
        return Selected(AllTokens(tokens.pyramid))

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """Raise `ValueError` unless the ratio is 1."""
        if keep_ratio != 1:
            raise ValueError(f"this model has a dense encoder; it cannot keep {keep_ratio} of the tokens, only 1.0")


class TopKSelector(nn.Module):
    """Keep the best share of every image's tokens.

    An image with n real tokens keeps min(int(n * keep_ratio) + 1, n) of them.

    Args:
        scorer: tokens -> scores.
        keep_ratio: the share, above 0 and up to 1.
        inference_keep_ratio: the share at inference; None for the same.
        padding: `excluded` ranks padding behind every real token; `lowest` gives it the lowest score of the batch,
            through which gradients flow, as the public implementation does.

    Raises:
        ValueError: a ratio is not in (0, 1].
    """

    def __init__(
        self,
        *,
        scorer: nn.Module,
        keep_ratio: float,
        inference_keep_ratio: float | None = None,
        padding: Literal["excluded", "lowest"] = "excluded",
    ):
        super().__init__()
        self.scorer, self.padding = scorer, padding
        self.training_keep_ratio = check_keep_ratio(keep_ratio)
        self.inference_keep_ratio = check_keep_ratio(
            keep_ratio if inference_keep_ratio is None else inference_keep_ratio
        )

    @property
    def keep_ratio(self) -> float:
        """The share kept in the mode, training or inference, that the module is in."""
        return self.training_keep_ratio if self.training else self.inference_keep_ratio

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """Keep another share from now on, in training and at inference."""
        self.training_keep_ratio = self.inference_keep_ratio = check_keep_ratio(keep_ratio)

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection | None) -> Selected:
        scored: TokenScores = self.scorer(tokens, proposals, projection)
        scores = scored.values
        if tokens.pyramid.has_padding:
            lowest = scores.min() if self.padding == "lowest" else scores.new_tensor(float("-inf"))
            scores = scores.masked_fill(tokens.pyramid.padding_mask, lowest)
        selection = top_tokens(scores, token_budgets(tokens.pyramid.valid_counts, self.keep_ratio))
        return Selected(selection, scores, scored.predictions)


def check_keep_ratio(keep_ratio: float) -> float:
    """Return a ratio in (0, 1]; raise `ValueError` for any other."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be above 0 and at most 1, got {keep_ratio}; 1 refines every token")
    return float(keep_ratio)


def token_budgets(valid_counts: list[int], keep_ratio: float) -> list[int]:
    """Tokens that every image keeps of its real ones: min(int(n * keep_ratio) + 1, n)."""
    return [min(int(count * keep_ratio) + 1, count) for count in valid_counts]


def top_tokens(scores: Tensor, budgets: list[int]) -> TopKTokens:
    """The `budgets[b]` tokens of highest score of every image; smaller images fill up with their next best."""
    indices = scores.detach().topk(max(budgets), dim=1).indices
    counts = torch.tensor(budgets, device=scores.device)
    return TopKTokens(indices=indices, counts=counts, num_tokens=scores.shape[1])
