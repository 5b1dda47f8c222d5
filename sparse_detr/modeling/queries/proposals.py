"""A proposal box for every token (Deformable DETR, section 4.2, two-stage)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.structures import Pyramid


@dataclass(frozen=True, eq=False)
class Proposals:
    """One box a token.

    Args:
        box_logits: (B, N, 4) cxcywh before the sigmoid.
        ignored: (B, N) bool, True where the token proposes nothing: on padding and, in the public implementation, on
            the border.
        excluded: (B, N) bool, True where the token must not become a query; None where every token may.
    """

    box_logits: Tensor
    ignored: Tensor
    excluded: Tensor | None


class ProposalGenerator(nn.Module):
    """Boxes around every token's centre, 5 % of the image wide on the finest level and twice as wide on each next.

    Args:
        border: what becomes of boxes with a coordinate outside of (0.01, 0.99): `clamped` moves it to the nearer end;
            `dropped` is the public implementation, which ignores the token, gives it the box (1, 1, 1, 1) and still
            lets it and padding become queries.
    """

    min_value = 0.01
    # Stands for the public implementation's infinity: the sigmoid is 1 and has no gradient, and nothing becomes NaN.
    dropped_logit = 1e4

    def __init__(self, *, border: Literal["clamped", "dropped"] = "clamped"):
        super().__init__()
        self.border = border

    def forward(self, pyramid: Pyramid, dtype: torch.dtype) -> Proposals:
        """Propose boxes beside features of `dtype`, in its `geometry_dtype`."""
        centers = pyramid.centers(dtype)
        size = 0.05 * 2.0 ** pyramid.cells[:, :1].to(centers.dtype)
        boxes = torch.cat([centers, size.expand_as(centers)], -1)
        padding = pyramid.padding_mask
        if self.border == "clamped":
            logits = boxes.clamp(self.min_value, 1 - self.min_value).logit()
            return Proposals(box_logits=logits, ignored=padding, excluded=padding if pyramid.has_padding else None)
        inside = ((boxes > self.min_value) & (boxes < 1 - self.min_value)).all(-1)
        ignored = padding | ~inside
        logits = boxes.logit().masked_fill(ignored[..., None], self.dropped_logit)
        return Proposals(box_logits=logits, ignored=ignored, excluded=None)


class ProposalProjection(nn.Module):
    """Linear layer and layer normalisation in front of whatever scores tokens: proposals and scoring networks.

    Args:
        embed_dim: C.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, embed_dim)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, proposals: Proposals) -> Tensor:
        """Project (B, N, C), with zeros in place of the tokens that propose nothing."""
        return self.norm(self.linear(tokens.masked_fill(proposals.ignored[..., None], 0)))
