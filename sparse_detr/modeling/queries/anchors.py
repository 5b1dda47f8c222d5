"""Learned boxes as queries (DAB-DETR, section 4.2)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import inverse_sigmoid
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Queries, geometry_dtype

AnchorStart = Literal["normal", "uniform_centers", "uniform"]


class Anchors(nn.Module):
    """Learned boxes.

    Args:
        num_anchors: number of boxes.
        start: initial values. `normal`: logits from N(0, 1); `uniform_centers`: the same, but centres uniform over the
            image; `uniform`: all four numbers uniform, with logits from -3 to 3.
    """

    def __init__(self, *, num_anchors: int, start: AnchorStart = "normal"):
        super().__init__()
        self.logits = nn.Parameter(initial_logits(num_anchors, start))

    def forward(self) -> Tensor:
        """Return (A, 4) logits of cxcywh in [0, 1] of the unpadded image."""
        return self.logits


class FixedCenterAnchors(nn.Module):
    """Boxes with a learned size and a fixed centre.

    The public implementations have this option too, but they clear the gradient flag of a slice, which has no effect:
    their centres learn. To train like them, use `Anchors`. Weights of `Anchors` can be loaded here too.

    Args:
        num_anchors, start: see `Anchors`.
    """

    centers: Tensor

    def __init__(self, *, num_anchors: int, start: AnchorStart = "uniform_centers"):
        super().__init__()
        centers, sizes = initial_logits(num_anchors, start).split(2, -1)
        self.register_buffer("centers", centers)
        self.sizes = nn.Parameter(sizes)
        self.register_load_state_dict_pre_hook(_split_logits)

    def forward(self) -> Tensor:
        """Return (A, 4) logits of cxcywh in [0, 1] of the unpadded image."""
        return torch.cat([self.centers, self.sizes], -1)


def _split_logits(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Replace the logits of `Anchors` in a state dict by centres and sizes."""
    if f"{prefix}logits" in weights:
        weights[f"{prefix}centers"], weights[f"{prefix}sizes"] = weights.pop(f"{prefix}logits").split(2, -1)


def initial_logits(num_anchors: int, start: AnchorStart) -> Tensor:
    """Return initial (A, 4) logits of cxcywh; for `start` see `Anchors`."""
    if start == "uniform":
        return inverse_sigmoid(torch.rand(num_anchors, 4), 1e-3).clamp(-3, 3)
    logits = torch.randn(num_anchors, 4)
    if start == "uniform_centers":
        logits[:, :2] = inverse_sigmoid(torch.rand(num_anchors, 2), 1e-3)
    return logits


class LearnedAnchors(nn.Module):
    """The same anchors as queries for every image; the decoder derives their position from the boxes.

    Args:
        anchors: module that returns (A, 4) logits.
        embed_dim: C.
        content: initial content of the queries: `zeros`, or a `learned` vector for every anchor.
        num_patterns: number of learned vectors that are added to the content of all anchors; n > 0 patterns give n A
            queries, first all anchors with the first pattern (as in Anchor DETR).
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
