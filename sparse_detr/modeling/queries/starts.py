"""Content and position of queries that were chosen among the encoder's proposals.

A start takes the chosen tokens (B, Q, C) of the memory, the same as projected for the proposal head, and their detached
boxes (B, Q, 4), cxcywh in [0, 1]; it gives the content (B, Q, C) and the position (B, Q, C), or None for a position
that the decoder derives from the boxes.
"""

from __future__ import annotations

from torch import Tensor, nn

from sparse_detr.layers import embed_boxes


class BoxEmbeddingProjection(nn.Module):
    """Linear layer and layer normalisation of the sine embedding of a box.

    Args:
        embed_dim: C.
        out_dim: channels of the result.
    """

    def __init__(self, *, embed_dim: int, out_dim: int):
        super().__init__()
        self.num_features = embed_dim // 2
        self.linear = nn.Linear(2 * embed_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, boxes: Tensor) -> Tensor:
        """(B, Q, out_dim) of (B, Q, 4) boxes."""
        return self.norm(self.linear(embed_boxes(boxes, self.num_features, dtype=self.linear.weight.dtype)))


class BoxStart(nn.Module):
    """Content and position both come from the sine embedding of the box (Deformable DETR, two-stage).

    Args:
        embed_dim: C.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.position_projection = BoxEmbeddingProjection(embed_dim=embed_dim, out_dim=2 * embed_dim)

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        position, content = self.position_projection(boxes).chunk(2, -1)
        return content, position


class MemoryStart(nn.Module):
    """The content is the encoded token itself, the position comes from its box (Efficient DETR, Sparse DETR).

    Args:
        embed_dim: C.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.position_projection = BoxEmbeddingProjection(embed_dim=embed_dim, out_dim=embed_dim)

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        return memory, self.position_projection(boxes)


class ProjectedStart(nn.Module):
    """The content is the projected token, detached, the position is left to the decoder (DAB-Deformable, two-stage)."""

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        return projected.detach(), None


class LearnedStart(nn.Module):
    """The content is learned and the same for every image: mixed query selection (DINO, section 3.4).

    Args:
        num_queries: Q.
        embed_dim: C.
    """

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, embed_dim)
        nn.init.xavier_uniform_(self.embedding.weight)

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.embedding.weight[: boxes.shape[1]].expand(boxes.shape[0], -1, -1), None
