"""Poll the tokens of objects, pool the tokens of the background (PnP-DETR, section 3.2).

    polled   s_i x_i, the tokens with the highest scores s_i, each with its position
    pooled   W_v sum_j a_ij x_j at the position sum_j a_ij p_j, a_i = softmax over j of W_a x_j, j not polled

x is the normalised token, s = sigmoid(network(token before the normalisation)).

The encoder and the decoder read the polled and the pooled tokens in place of those of the image.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.modeling.selection.selector import Selected, TopKSelector
from sparse_detr.modeling.selection.steering import AnyBudget
from sparse_detr.structures import CascadedTokens, PolledTokens, Tokens, TopKTokens, geometry_dtype


class TokenPool(nn.Module):
    """A few tokens that each are a weighted mean of tokens, with weights that the tokens predict.

    Args:
        embed_dim: C.
        num_pooled: S, number of pooled tokens.

    Raises:
        ValueError: there are no pooled tokens.
    """

    def __init__(self, *, embed_dim: int, num_pooled: int):
        super().__init__()
        if num_pooled < 1:
            raise ValueError(f"num_pooled must be at least 1, got {num_pooled}; the paper has 30")
        self.weight_proj = nn.Linear(embed_dim, num_pooled)
        self.value_proj = nn.Linear(embed_dim, embed_dim)

    @property
    def num_pooled(self) -> int:
        """S."""
        return self.weight_proj.out_features

    def forward(self, tokens: Tokens, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pool the `valid` (B, N) tokens.

        Returns:
            Content (B, S, C) and position (B, S, C) of the pooled tokens, and the weights (B, S, N), which are 0 on
            tokens that are not valid.
        """
        weights = self._weights(tokens.content, valid).to(tokens.content.dtype)
        # The projection of the mean is the mean of the projections, and costs less.
        return self.value_proj(weights @ tokens.content), weights @ tokens.position.to(weights.dtype), weights

    def _weights(self, content: Tensor, valid: Tensor) -> Tensor:
        """Return (B, S, N); an image without valid tokens has no weights, but no NaN either, nor in gradients."""
        logits = self.weight_proj(content).transpose(1, 2)
        logits = logits.to(geometry_dtype(logits.dtype))
        lowest = torch.finfo(logits.dtype).min
        return logits.masked_fill(~valid[:, None], lowest).softmax(-1) * valid[:, None]


class PollAndPool(TopKSelector):
    """Polls the best tokens of every image, as many as a budget says, and pools all others, both normalised.

    The score of a polled token multiplies its content, so that the losses of the detections train the scorer.

    Args:
        pool: makes the pooled tokens.
        options: of `TopKSelector`.
    """

    def __init__(self, *, pool: TokenPool, **options: Any):
        super().__init__(**options)
        self.pool = pool
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all layers as PyTorch does, not as the transformer."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    def forward(self, tokens: Tokens, proposals: Proposals, budget: AnyBudget | None = None) -> Selected:
        """Return the polled tokens as the selection, and the polled and the pooled tokens for the encoder.

        Raises:
            ValueError: see `TopKSelector`; or the budget gives every layer tokens of its own.
        """
        found = super().forward(tokens, proposals, budget)
        polled = found.selection
        if isinstance(polled, CascadedTokens) or not isinstance(polled, TopKTokens):
            raise ValueError(
                f"the budget selects {type(polled).__name__}, but all layers of this encoder refine the same tokens; "
                "give a share, or a RoundedDownBudget"
            )
        assert found.scores is not None
        rest = ~(polled.keep | tokens.padding_mask)
        normed = replace(tokens, content=F.layer_norm(tokens.content, tokens.content.shape[-1:]).to(tokens.content))
        content, position, weights = self.pool(normed, rest)
        scores = polled.gather(found.scores).sigmoid()[..., None].to(normed.content)
        no_pool = ~rest.any(1, keepdim=True)
        sampled = Tokens(
            content=torch.cat([polled.gather(normed.content) * scores, content], 1),
            position=torch.cat([polled.gather(tokens.position), position], 1),
            pyramid=tokens.pyramid,
            mask=torch.cat([~polled.valid, no_pool.expand(-1, self.pool.num_pooled)], 1),
        )
        selection = PolledTokens.polled(polled, weights)
        return Selected(selection, found.scores, found.ranking, found.predictions, sampled)
