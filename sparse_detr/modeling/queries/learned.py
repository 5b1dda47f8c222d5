"""Learned queries (Deformable DETR, section 4.1)."""

from __future__ import annotations

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
