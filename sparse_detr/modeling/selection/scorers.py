"""Further scorers: those that Sparse DETR is compared with (its section 4.3), and that of PnP-DETR."""

from __future__ import annotations

import torch
from torch import nn

from sparse_detr.layers import MLP
from sparse_detr.modeling.heads import PredictionHead, Proposals
from sparse_detr.modeling.selection.selector import TokenScores
from sparse_detr.structures import PredictionGroup, Tokens, geometry_dtype


class ObjectnessScorer(nn.Module):
    """The best class logit of a detection head on the tokens; the head learns from true boxes.

    Args:
        head: class and box head.
        class_agnostic: score by the first logit, which means "an object", instead of the best class.
    """

    def __init__(self, *, head: PredictionHead, class_agnostic: bool = False):
        super().__init__()
        self.head, self.class_agnostic = head, class_agnostic

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens."""
        projected = proposals.project(tokens.content + tokens.position)
        predictions = self.head(projected, proposals.box_logits)
        group = PredictionGroup(
            name="backbone",
            suffix="_backbone",
            logits=predictions.logits,
            boxes=predictions.boxes,
            valid=proposals.keep,
            class_agnostic=self.class_agnostic,
        )
        score = predictions.logits[..., 0] if self.class_agnostic else predictions.logits.amax(-1)
        return TokenScores(score.detach(), group)


class MLPScorer(nn.Module):
    """An MLP of a token's content, which knows neither its position nor the other tokens (PnP-DETR, section 3.2).

    No loss names the right scores: the selector must use them in a way that has a gradient.

    Args:
        embed_dim: C, of the input and the hidden layer.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.mlp = MLP(sizes=(embed_dim, embed_dim, 1))

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens."""
        with torch.autocast(tokens.content.device.type, enabled=False):  # half precision would give many equal scores
            return TokenScores(self.mlp(tokens.content.to(self.mlp.dtype)).squeeze(-1))


class RandomScorer(nn.Module):
    """Uniform random numbers, new for every batch."""

    def forward(self, tokens: Tokens, proposals: Proposals) -> TokenScores:
        """Score all tokens."""
        position = tokens.position[..., 0]
        return TokenScores(torch.rand_like(position, dtype=geometry_dtype(position.dtype)))
