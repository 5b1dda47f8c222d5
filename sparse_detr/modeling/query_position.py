"""Where decoder queries are: the embedding that is added to them wherever they attend."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import MLP, embed_boxes
from sparse_detr.modeling.queries import Queries
from sparse_detr.structures import Pyramid


@dataclass(frozen=True, eq=False)
class QueryPosition:
    """Args:
    position: (B, Q, C), added to the content wherever a query attends.
    reference_points: (B, Q, 2|4), where it looks in the memory, in [0, 1] of the unpadded image.
    spatial: (B, Q, C), what dense attention compares with the positions of the memory; None for deformable attention.
    """

    position: Tensor
    reference_points: Tensor
    spatial: Tensor | None = None


class GivenPosition(nn.Module):
    """The embedding that the queries came with, in every layer (Deformable DETR, section 4.1)."""

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Embed the queries of one layer.

        Args:
            queries: what the decoder started from.
            reference_points: (B, Q, 2|4) of this layer.
            content: (B, Q, C) of this layer, which in the first one holds nothing of the image yet.
            pyramid: geometry of the memory.
            layer: number of the decoder layer, from 0.
        """
        assert queries.position is not None
        return QueryPosition(position=queries.position, reference_points=reference_points)


class ContentScale(MLP):
    """Factors of an embedding from the queries' content: 1 in the first layer, whose content says nothing yet.

    Args:
        sizes: see `MLP`; from C to C, or to 1 for one factor a query.
    """

    def forward(self, content: Tensor, layer: int) -> Tensor:  # type: ignore[override]
        """Factors of (B, Q, C), which they broadcast to; `layer` counts from 0."""
        return super().forward(content) if layer > 0 else content.new_ones(())


class LayerScale(nn.Module):
    """Learned factors of every decoder layer and channel, whatever the content.

    Args:
        num_layers: decoder layers.
        embed_dim: C.
    """

    def __init__(self, *, num_layers: int, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers, embed_dim))

    def forward(self, content: Tensor, layer: int) -> Tensor:
        """See `ContentScale`."""
        return self.weight[layer]


class BoxPosition(nn.Module):
    """An MLP of the sine embedding of every layer's own box (DAB-DETR, section 4.2; DINO).

    Args:
        embed_dim: C, a multiple of 4.
        scale: (content, layer) -> factors of the embedding, such as `ContentScale`; None for none.
        frame: the boxes are embedded in the frame of the `image`, or of the `padded` finest level as in the public
            code, where the embedding of a box then depends on the other images of the batch.
    """

    def __init__(self, *, embed_dim: int, scale: nn.Module | None = None, frame: Literal["image", "padded"] = "image"):
        super().__init__()
        self.num_features, self.frame = embed_dim // 2, frame
        self.mlp = MLP(sizes=(2 * embed_dim, embed_dim, embed_dim))
        self.scale = scale

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Embed the boxes (B, Q, 4) of one layer; see `GivenPosition`."""
        boxes = self._framed(reference_points, pyramid)
        position = self.mlp(embed_rows_first(boxes, self.num_features, dtype=self.mlp.dtype))
        if self.scale is not None:
            position = position * self.scale(content, layer)
        return QueryPosition(position=position, reference_points=reference_points)

    def _framed(self, boxes: Tensor, pyramid: Pyramid) -> Tensor:
        if self.frame == "image":
            return boxes
        return boxes * pyramid.valid_ratios(boxes.dtype)[:, :1].repeat(1, 1, 2)


def embed_rows_first(boxes: Tensor, num_features: int, *, dtype: torch.dtype) -> Tensor:
    """Sine embedding of (..., 4) boxes in the order cy, cx, w, h: rows first, as in the embedding of tokens."""
    return embed_boxes(boxes[..., [1, 0, 2, 3]], num_features, dtype=dtype)
