"""From scores to a selection within a budget (Sparse DETR, section 3.1; Focus-DETR, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.queries import ProposalProjection, Proposals
from sparse_detr.modeling.selection.budgets import (
    batch_budgets,
    cascaded_budgets,
    check_keep_ratio,
    check_schedule,
    token_budgets,
)
from sparse_detr.modeling.selection.scorers import TokenScores
from sparse_detr.structures import AllTokens, CascadedTokens, PredictionGroup, Tokens, TokenSelection, TopKTokens


@dataclass(frozen=True, eq=False)
class Selected:
    """Args:
    selection: the tokens to refine.
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

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection | None) -> Selected:
        return Selected(AllTokens(tokens.pyramid))

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """Raise `ValueError` unless the ratio is 1."""
        if keep_ratio != 1:
            raise ValueError(f"this model has a dense encoder; it cannot keep {keep_ratio} of the tokens, only 1.0")


class TopKSelector(nn.Module):
    """Keep the best share of every image's tokens, in all encoder layers or in fewer and fewer from layer to layer.

    An image with n real tokens keeps min(int(n * keep_ratio) + 1, n) of them. With a schedule of shares c_i, encoder
    layer i refines min(int(n * keep_ratio * c_i) + 1, n), the best of those.

    Args:
        scorer: tokens -> scores.
        keep_ratio: the share in the first layer, above 0 and up to 1.
        inference_keep_ratio: the share at inference; None for the same.
        schedule: c_i of every encoder layer, 1 for the first and never growing; None refines all in all layers.
        padding: `excluded` ranks padding behind every real token; `lowest` gives it the lowest score of the batch,
            through which gradients flow, as the public implementation of Sparse DETR does; `ranked_lowest` does so
            for the ranking and leaves the scores that are supervised alone, as that of Focus-DETR does.
        budgets: whose tokens the shares are of: `image`, of every image on its own; `batch`, the public
            implementation of Focus-DETR: layer i refines int(K c_i) tokens, K the largest first budget of the batch,
            but no more than the image's own first budget.

    Raises:
        ValueError: a ratio or share is not in (0, 1], or the schedule does not start at 1 or grows.
    """

    def __init__(
        self,
        *,
        scorer: nn.Module,
        keep_ratio: float,
        inference_keep_ratio: float | None = None,
        schedule: Sequence[float] | None = None,
        padding: Literal["excluded", "lowest", "ranked_lowest"] = "excluded",
        budgets: Literal["image", "batch"] = "image",
    ):
        super().__init__()
        self.scorer, self.padding, self.budgets = scorer, padding, budgets
        self.training_keep_ratio = check_keep_ratio(keep_ratio)
        self.inference_keep_ratio = check_keep_ratio(
            keep_ratio if inference_keep_ratio is None else inference_keep_ratio
        )
        self.schedule = None if schedule is None else check_schedule(schedule)

    @property
    def keep_ratio(self) -> float:
        """The share kept by the first layer in the mode, training or inference, that the module is in."""
        return self.training_keep_ratio if self.training else self.inference_keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        """The mean of the encoder layers' shares."""
        schedule = self.schedule or (1.0,)
        return self.keep_ratio * sum(schedule) / len(schedule)

    def set_keep_ratio(self, keep_ratio: float) -> None:
        """Keep another share in the first layer from now on, in training and at inference."""
        self.training_keep_ratio = self.inference_keep_ratio = check_keep_ratio(keep_ratio)

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection | None) -> Selected:
        scored: TokenScores = self.scorer(tokens, proposals, projection)
        ranking = scored.values
        if tokens.pyramid.has_padding:
            lowest = ranking.new_tensor(float("-inf")) if self.padding == "excluded" else ranking.min()
            ranking = ranking.masked_fill(tokens.pyramid.padding_mask, lowest)
        selection = self._select(ranking, tokens.pyramid.valid_counts)
        scores = ranking if self.padding == "lowest" else scored.values
        return Selected(selection, scores, ranking, scored.predictions)

    def _select(self, ranking: Tensor, valid_counts: list[int]) -> TokenSelection:
        if self.schedule is None:
            return top_tokens(ranking, token_budgets(valid_counts, self.keep_ratio))
        make = cascaded_budgets if self.budgets == "image" else batch_budgets
        return top_token_cascade(ranking, make(valid_counts, self.keep_ratio, self.schedule))


def top_tokens(scores: Tensor, budgets: list[int]) -> TopKTokens:
    """The `budgets[b]` tokens of highest score of every image; smaller images fill up with their next best."""
    indices = scores.detach().topk(max(budgets), dim=1).indices
    counts = torch.tensor(budgets, device=scores.device)
    return TopKTokens(indices=indices, counts=counts, num_tokens=scores.shape[1])


def top_token_cascade(scores: Tensor, layer_budgets: list[list[int]]) -> CascadedTokens:
    """The tokens of highest score that every layer keeps, `layer_budgets[i][b]` of image b in layer i."""
    first = top_tokens(scores, layer_budgets[0])
    return CascadedTokens(
        indices=first.indices,
        counts=first.counts,
        num_tokens=first.num_tokens,
        layer_counts=torch.tensor(layer_budgets, device=scores.device),
        layer_rows=tuple(max(budgets) for budgets in layer_budgets),
    )
