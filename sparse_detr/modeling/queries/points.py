"""Anchor points as queries, each with several patterns (Anchor DETR, sections 3.1 and 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_detr.layers import CoordinateEmbedding
from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Queries, geometry_dtype


class LearnedPoints(nn.Module):
    """Learned points, uniform over the image at first. They are coordinates, not logits, and may leave the image.

    Args:
        num_points: A.
    """

    def __init__(self, *, num_points: int):
        super().__init__()
        self.coordinates = nn.Parameter(torch.rand(num_points, 2))

    def forward(self) -> Tensor:
        """Return (A, 2): (x, y) in [0, 1] of the unpadded image, or outside."""
        return self.coordinates


class GridPoints(nn.Module):
    """The centres of a square grid, column by column as in the public code. Nothing is learned.

    Args:
        num_points: A, a square number.

    Raises:
        ValueError: `num_points` is no square number.
    """

    coordinates: Tensor

    def __init__(self, *, num_points: int):
        super().__init__()
        side = round(math.sqrt(num_points))
        if side**2 != num_points:
            raise ValueError(f"a square grid has no {num_points} points; give num_queries={side**2}")
        centers = (torch.arange(side) + 0.5) / side
        points = torch.cartesian_prod(centers, centers)
        self.register_buffer("coordinates", points, persistent=False)

    def forward(self) -> Tensor:
        """Return (A, 2): (x, y) in [0, 1] of the unpadded image."""
        return self.coordinates


class PatternQueries(nn.Module):
    """The same points as queries for every image, each once with every learned pattern as content.

    Args:
        points: module that returns (A, 2) points.
        embed_dim: C.
        num_patterns: number of patterns; n patterns give n A queries, first all points with the first pattern.

    Raises:
        ValueError: there are no patterns.
    """

    def __init__(self, *, points: nn.Module, embed_dim: int, num_patterns: int):
        super().__init__()
        if num_patterns < 1:
            raise ValueError(f"num_patterns must be at least 1, got {num_patterns}; patterns are the queries' content")
        self.points = points
        self.patterns = nn.Embedding(num_patterns, embed_dim)
        self.position = CoordinateEmbedding(embed_dim=embed_dim, num_coordinates=2)

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Repeat the queries for every image; only the batch size of `memory` matters."""
        points, patterns = self.points(), self.patterns.weight
        points = points.to(geometry_dtype(patterns.dtype))
        position = self.position(points[:, 1], points[:, 0])  # row before column, as for tokens
        repeats, batch_size = (len(patterns), 1), memory.shape[0]
        return Queries(
            content=patterns.repeat_interleave(len(points), 0).expand(batch_size, -1, -1),
            position=position.repeat(repeats).expand(batch_size, -1, -1),
            reference_points=points.repeat(repeats).expand(batch_size, -1, -1),
        )
