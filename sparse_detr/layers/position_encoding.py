"""Sine embeddings of token positions and of boxes (DETR, appendix A.4; Deformable DETR, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_detr.layers.blocks import MLP
from sparse_detr.structures import Pyramid, geometry_dtype


def sine_embedding(x: Tensor, num_features: int, temperature: float = 10_000.0) -> Tensor:
    """Return (..., num_features): sin(x / d_k) and cos(x / d_k) in turn, d_k = temperature^(2k / num_features)."""
    exponent = torch.arange(0, num_features, 2, device=x.device).to(x.dtype) / num_features
    angle = x[..., None] / temperature**exponent
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(-2)


def embed_tokens(
    pyramid: Pyramid,
    embed_dim: int,
    *,
    dtype: torch.dtype,
    temperature: float = 10_000.0,
    offset: float = -0.5,
) -> Tensor:
    """Return the sine embedding of the row and column of every token, counted from 1; the unpadded level is 2 pi wide.

    Args:
        dtype: dtype of the result; it is rounded at the end, because angles in half precision are wrong by whole cells.
        temperature: see `sine_embedding`.
        offset: added to the count: -0.5 for the centre of a token (Deformable DETR), 0 for its far edge (DETR).

    Returns:
        (B, N, embed_dim), the row in the first half of the channels, the column in the second.
    """
    wide = geometry_dtype(dtype)
    counts = pyramid.cells[None, :, 1:].to(wide) + 1 + offset
    angles = counts / (pyramid.token_valid_sizes.to(wide) + 1e-6) * (2 * math.pi)
    return sine_embedding(angles, embed_dim // 2, temperature).flatten(-2).to(dtype)


def embed_boxes(boxes: Tensor, num_features: int, *, dtype: torch.dtype) -> Tensor:
    """Return the sine embedding of boxes in [0, 1], `num_features` for each of cx, cy, w, h; or for x, y of points.

    Args:
        boxes: (..., 4) boxes or (..., 2) points.
        dtype: dtype of the result; the boxes may have more bits.

    Returns:
        (..., 4 * num_features), or (..., 2 * num_features) of points.
    """
    return sine_embedding(boxes * (2 * math.pi), num_features).flatten(-2).to(dtype)


class CoordinateEmbedding(nn.Module):
    """Two linear layers of the sine embedding of coordinates (Anchor DETR, section 3.2).

    Args:
        embed_dim: C.
        num_coordinates: number of coordinates of a position; every one is embedded in C / `num_coordinates` channels.
    """

    def __init__(self, *, embed_dim: int, num_coordinates: int):
        super().__init__()
        self.num_features = embed_dim // num_coordinates
        self.mlp = MLP(sizes=(embed_dim, embed_dim, embed_dim))

    def forward(self, *coordinates: Tensor) -> Tensor:
        """Return (..., C) of `num_coordinates` tensors (...): numbers in [0, 1] of the unpadded image, or outside."""
        parts = [sine_embedding(coordinate * (2 * math.pi), self.num_features) for coordinate in coordinates]
        return self.mlp(torch.cat(parts, -1).to(self.mlp.dtype))
