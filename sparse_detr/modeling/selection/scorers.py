"""How worth refining is a token? (Sparse DETR, section 3.2, and the criteria it is compared with in section 4.3)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.queries import ProposalProjection, Proposals
from sparse_detr.structures import PredictionGroup, Tokens, geometry_dtype


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Args:
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
        """(B, N) scores of (B, N, C) tokens, whose normalised features are first multiplied by (B, N) `gain`."""
        normed = self.norm(x) if gain is None else self.norm(x) * gain[..., None]
        local, shared = nn.functional.gelu(self.embed(normed)).chunk(2, -1)
        if self.mean_over == "real":
            real = ~padding_mask[..., None]
            total = (shared * real).sum(1, keepdim=True, dtype=geometry_dtype(shared.dtype))  # may be too much for half
            mean = (total / real.sum(1, keepdim=True)).to(shared.dtype)
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

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection) -> TokenScores:
        projected = projection(tokens.content + tokens.position, proposals)
        return TokenScores(self.network(projected, tokens.pyramid.padding_mask))


class ObjectnessScorer(nn.Module):
    """The best class logit of a detection head on the tokens, which learns from true boxes.

    Args:
        head: class and box head.
        class_agnostic: the first logit means "an object", instead of the best class.
    """

    def __init__(self, *, head: PredictionHead, class_agnostic: bool = False):
        super().__init__()
        self.head, self.class_agnostic = head, class_agnostic

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection) -> TokenScores:
        projected = projection(tokens.content + tokens.position, proposals)
        predictions = self.head(projected, proposals.box_logits)
        group = PredictionGroup(
            name="backbone",
            suffix="_backbone",
            logits=predictions.logits,
            boxes=predictions.boxes,
            valid=None if proposals.excluded is None else ~proposals.excluded,
            class_agnostic=self.class_agnostic,
        )
        score = predictions.logits[..., 0] if self.class_agnostic else predictions.logits.amax(-1)
        return TokenScores(score.detach(), group)


class RandomScorer(nn.Module):
    """Uniform noise, drawn anew for every batch."""

    def forward(self, tokens: Tokens, proposals: Proposals, projection: ProposalProjection | None) -> TokenScores:
        position = tokens.position[..., 0]
        return TokenScores(torch.rand_like(position, dtype=geometry_dtype(position.dtype)))
