"""Learned boxes as queries (DAB-DETR, section 4.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import inverse_sigmoid
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Queries, geometry_dtype

Start = Literal["normal", "uniform_centers", "uniform"]


class Anchors(nn.Module):
    """Boxes that are free to move.

    Args:
        num_anchors: how many.
        start: `normal`, logits from N(0, 1); `uniform_centers`, the same with centres spread evenly over the image;
            `uniform`, all four numbers uniform, with logits of at most 3 either way.
    """

    def __init__(self, *, num_anchors: int, start: Start = "normal"):
        super().__init__()
        self.logits = nn.Parameter(initial_logits(num_anchors, start))

    def forward(self) -> Tensor:
        """(Q, 4) logits of cxcywh in [0, 1] of the unpadded image."""
        return self.logits


class FixedCenterAnchors(nn.Module):
    """Boxes that learn their size but stay where they are.

    The public implementations offer the same, but clear the gradient flag of a slice, which has no effect: their
    centres learn. To train like them take `Anchors`, whose files can be loaded here too.

    Args:
        num_anchors, start: see `Anchors`.
    """

    centers: Tensor

    def __init__(self, *, num_anchors: int, start: Start = "uniform_centers"):
        super().__init__()
        centers, sizes = initial_logits(num_anchors, start).split(2, -1)
        self.register_buffer("centers", centers)
        self.sizes = nn.Parameter(sizes)
        self.register_load_state_dict_pre_hook(_split_logits)

    def forward(self) -> Tensor:
        """(Q, 4) logits of cxcywh in [0, 1] of the unpadded image."""
        return torch.cat([self.centers, self.sizes], -1)


def _split_logits(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Turn the logits of `Anchors` in a state dict into centres and sizes."""
    if f"{prefix}logits" in weights:
        weights[f"{prefix}centers"], weights[f"{prefix}sizes"] = weights.pop(f"{prefix}logits").split(2, -1)


def initial_logits(num_anchors: int, start: Start) -> Tensor:
    """(Q, 4) logits of cxcywh; for `start` see `Anchors`."""
    if start == "uniform":
        return inverse_sigmoid(torch.rand(num_anchors, 4), 1e-3).clamp(-3, 3)
    logits = torch.randn(num_anchors, 4)
    if start == "uniform_centers":
        logits[:, :2] = inverse_sigmoid(torch.rand(num_anchors, 2), 1e-3)
    return logits


class LearnedAnchors(nn.Module):
    """The same anchors for every image, whose position the decoder derives from their boxes.

    Args:
        anchors: gives (A, 4) logits.
        embed_dim: C.
        content: what all queries start with: `zeros`, or a `learned` vector for every anchor.
        num_patterns: learned vectors, each of which is added to the content of all anchors; with n > 0 there are
            n A queries, first those of all anchors with the first pattern (as in Anchor DETR).
    """

    def __init__(
        self,
        *,
        anchors: nn.Module,
        embed_dim: int,
        content: Literal["zeros", "learned"] = "zeros",
        num_patterns: int = 0,
    ):
        super().__init__()
        self.anchors, self.embed_dim = anchors, embed_dim
        self.content = nn.Embedding(len(anchors()), embed_dim) if content == "learned" else None
        self.patterns = nn.Embedding(num_patterns, embed_dim) if num_patterns else None
        if self.content is not None:
            nn.init.zeros_(self.content.weight)
        if self.patterns is not None:
            nn.init.xavier_uniform_(self.patterns.weight)

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Repeat the queries for every image; only the batch size of `memory` matters."""
        logits = self.anchors()
        content = logits.new_zeros(len(logits), self.embed_dim) if self.content is None else self.content.weight
        if self.patterns is not None:
            content = (self.patterns.weight[:, None] + content).flatten(0, 1)
        boxes = logits.to(geometry_dtype(logits.dtype)).sigmoid().repeat(len(content) // len(logits), 1)
        batch_size = memory.shape[0]
        return Queries(
            content=content.expand(batch_size, -1, -1),
            position=None,
            reference_points=boxes.expand(batch_size, -1, -1),
        )
