"""Learned queries (DETR, section 3.2; Conditional DETR, section 3.2; Deformable DETR, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import Queries, geometry_dtype


class LearnedQueries(nn.Module):
    """The same learned queries for every image, each with a reference point.

    Args:
        num_queries: Q.
        embed_dim: C.
    """

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * embed_dim)
        self.reference_points = nn.Linear(embed_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Repeat the queries for every image; only the batch size of `memory` matters."""
        position, content = self.embedding.weight.expand(memory.shape[0], -1, -1).chunk(2, -1)
        points = self.reference_points(position).to(geometry_dtype(position.dtype)).sigmoid()
        return Queries(content=content, position=position, reference_points=points)


class LearnedPositions(nn.Module):
    """The same learned positions for every image; the content starts with zeros (DETR, section 3.2).

    Args:
        num_queries: Q.
        embed_dim: C.
        reference_points: positions (Q, C) -> logits (Q, 2) of reference points, as in Conditional DETR; None puts every
            reference point on the centre of the image, whose logit is 0: boxes of DETR have no reference.
    """

    def __init__(self, *, num_queries: int, embed_dim: int, reference_points: nn.Module | None = None):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, embed_dim)
        self.reference_points = reference_points

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Repeat the queries for every image; only the batch size of `memory` matters."""
        position = self.embedding.weight
        if self.reference_points is None:
            logits = position.new_zeros(len(position), 2)
        else:
            logits = self.reference_points(position)
        points = logits.to(geometry_dtype(position.dtype)).sigmoid()
        batch_size = memory.shape[0]
        return Queries(
            content=torch.zeros_like(position).expand(batch_size, -1, -1),
            position=position.expand(batch_size, -1, -1),
            reference_points=points.expand(batch_size, -1, -1),
        )
