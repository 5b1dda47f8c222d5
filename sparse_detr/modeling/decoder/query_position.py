"""Position embeddings of decoder queries, made from their points or boxes (Conditional DETR; DAB-DETR, section 4)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import MLP, embed_boxes
from sparse_detr.modeling.decoder.deformable import QueryPosition
from sparse_detr.structures import Pyramid, Queries


class ContentScale(MLP):
    """Factors of a position embedding from the content of queries; 1 in the first layer, before they read the image.

    Args:
        sizes: see `MLP`; from C to C, or to 1 for one factor for each query.
    """

    def forward(self, content: Tensor, layer: int) -> Tensor:  # type: ignore[override]
        """Return factors (B, Q, C), or of a shape that broadcasts to it; `layer` counts from 0."""
        return super().forward(content) if layer > 0 else content.new_ones(())


class LayerScale(nn.Module):
    """Learned factors for every decoder layer and channel, independent of the content.

    Args:
        num_layers: number of decoder layers.
        embed_dim: C.
    """

    def __init__(self, *, num_layers: int, embed_dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_layers, embed_dim))

    def forward(self, content: Tensor, layer: int) -> Tensor:
        """Return the (C,) factors of a layer; see `ContentScale`."""
        return self.weight[layer]


class ConditionalPosition(nn.Module):
    """Learned positions, and for full attention the sine embedding of the reference point (Conditional DETR, 3.2).

    The embedding is multiplied by factors from the content; Meng et al., ICCV 2021.

    Args:
        scale: (content, layer) -> the factors, such as `ContentScale`; None for no factors.
    """

    def __init__(self, *, scale: nn.Module | None):
        super().__init__()
        self.scale = scale

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Return the position of queries at the points (B, Q, 2) of one layer; see `GivenPosition`."""
        position = queries.position
        assert position is not None
        spatial = embed_boxes(reference_points.flip(-1), position.shape[-1] // 2, dtype=position.dtype)
        if self.scale is not None:
            spatial = spatial * self.scale(content, layer)
        return QueryPosition(position=position, reference_points=reference_points, spatial=spatial)


class BoxPosition(nn.Module):
    """Position embedding: an MLP of the sine embedding of the box in every layer (DAB-DETR, section 4.2; DINO).

    Args:
        embed_dim: C, a multiple of 4.
        scale: (content, layer) -> factors of the embedding, such as `ContentScale`; None for no factors.
        frame: coordinates of the embedded boxes: in [0, 1] of the `image`, or of the `padded` finest level as in the
            public code, where the embedding of a box depends on the other images of the batch.
    """

    def __init__(self, *, embed_dim: int, scale: nn.Module | None = None, frame: Literal["image", "padded"] = "image"):
        super().__init__()
        self.num_features, self.frame = embed_dim // 2, frame
        self.mlp = MLP(sizes=(2 * embed_dim, embed_dim, embed_dim))
        self.scale = scale

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Return the position of queries at the boxes (B, Q, 4) of one layer; see `GivenPosition`."""
        boxes = self._framed(reference_points, pyramid)
        position = self.mlp(embed_rows_first(boxes, self.num_features, dtype=self.mlp.dtype))
        if self.scale is not None:
            position = position * self.scale(content, layer)
        return QueryPosition(position=position, reference_points=reference_points)

    def _framed(self, boxes: Tensor, pyramid: Pyramid) -> Tensor:
        if self.frame == "image":
            return boxes
        return boxes * pyramid.valid_ratios(boxes.dtype)[:, :1].repeat(1, 1, 2)


class ModulatedBoxPosition(nn.Module):
    """Position embedding for full attention: an MLP of the sine embedding of the box, and the embedding of its centre.

    The embedding of the centre is multiplied by learned factors. Its row half is also multiplied by a height predicted
    from the content, divided by the height of the box, and its column half by the same of the widths (DAB-DETR,
    sections 4.2 and 4.4). Heights and widths of boxes below `min_size` count as `min_size`, so that half precision can
    hold the quotient; the public code has no such limit.

    Args:
        embed_dim: C, a multiple of 4.
        scale: (content, layer) -> the learned factors, such as `ContentScale` and `LayerScale`; None for no factors.
    """

    min_size = 1e-4

    def __init__(self, *, embed_dim: int, scale: nn.Module | None):
        super().__init__()
        self.num_features = embed_dim // 2
        self.mlp = MLP(sizes=(2 * embed_dim, embed_dim, embed_dim))
        self.scale = scale
        self.size = MLP(sizes=(embed_dim, embed_dim, 2))

    def forward(
        self, queries: Queries, reference_points: Tensor, content: Tensor, pyramid: Pyramid, *, layer: int
    ) -> QueryPosition:
        """Return the position of queries at the boxes (B, Q, 4) of one layer; see `GivenPosition`."""
        embedding = embed_rows_first(reference_points, self.num_features, dtype=self.mlp.dtype)
        spatial = embedding[..., : 2 * self.num_features]
        if self.scale is not None:
            spatial = spatial * self.scale(content, layer)
        factors = self.size(content).sigmoid() / reference_points[..., 2:].clamp(min=self.min_size)
        factors = factors.flip(-1).repeat_interleave(self.num_features, -1)  # (w, h) -> rows, columns
        spatial = (spatial * factors).to(self.mlp.dtype)
        return QueryPosition(position=self.mlp(embedding), reference_points=reference_points, spatial=spatial)


def embed_rows_first(boxes: Tensor, num_features: int, *, dtype: torch.dtype) -> Tensor:
    """Return the sine embedding of (..., 4) boxes in the order cy, cx, w, h: row before column, as for tokens."""
    return embed_boxes(boxes[..., [1, 0, 2, 3]], num_features, dtype=dtype)
