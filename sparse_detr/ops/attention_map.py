"""The attention that every token received, gathered from deformable attention's samples (Sparse DETR, appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparse_detr.ops.deformable_attention import check_sampling_shapes


def splat_attention(
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    pixel_offset: float = -0.5,
) -> Tensor:
    """Add every attention weight to the four tokens that its sample was interpolated from.

    Args:
        spatial_shapes: (h, w) of every level.
        sampling_locations: (B, Q, M, L, P, 2), as (x, y) in [0, 1].
        attention_weights: (B, Q, M, L, P).
        pixel_offset: pixel coordinate = location * size + offset. -0.5 is where the attention reads; 0 is what the
            public Sparse DETR does, half a pixel to the right and below.

    Returns:
        (B, N), summed over queries, heads and points. What falls outside of a level is dropped.
    """
    num_tokens = sum(height * width for height, width in spatial_shapes)
    check_sampling_shapes(spatial_shapes, sampling_locations, attention_weights, num_tokens=num_tokens)
    levels = []
    for level, (height, width) in enumerate(spatial_shapes):
        size = sampling_locations.new_tensor([width, height])
        pixels = sampling_locations[:, :, :, level].flatten(1, -2) * size + pixel_offset
        levels.append(_splat_level(pixels, attention_weights[:, :, :, level].flatten(1), height, width))
    return torch.cat(levels, 1)


def _splat_level(pixels: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """(B, h * w) from (B, S, 2) pixel coordinates and (B, S) weights."""
    corner = pixels.floor()
    fraction = pixels - corner
    level = weights.new_zeros(weights.shape[0], height * width)
    for down in (0, 1):
        for right in (0, 1):
            column, row = corner[..., 0] + right, corner[..., 1] + down
            share_x = fraction[..., 0] if right else 1 - fraction[..., 0]
            share_y = fraction[..., 1] if down else 1 - fraction[..., 1]
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = torch.where(inside, row * width + column, 0).long()
            level = level.scatter_add(1, index, torch.where(inside, weights * share_x * share_y, 0))
    return level
