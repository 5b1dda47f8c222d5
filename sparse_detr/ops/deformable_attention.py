"""Multi-scale deformable attention (Deformable DETR, section 4.1), in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Weighted sum of bilinear samples of `value` around every query.

    A location (x, y) in [0, 1] falls on pixel coordinate (x * w - 0.5, y * h - 0.5) of a level; what lies outside of
    the map reads as zero.

    Args:
        value: (B, N, M, D), levels one after the other, rows within a level.
        spatial_shapes: (h, w) of every level.
        sampling_locations: (B, Q, M, L, P, 2), as (x, y).
        attention_weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * D).

    Raises:
        ValueError: an argument's shape does not fit the others.
    """
    check_sampling_shapes(spatial_shapes, sampling_locations, attention_weights, num_tokens=value.shape[1])
    batch, num_queries, num_heads = sampling_locations.shape[:3]
    if value.dim() != 4 or value.shape[::2] != (batch, num_heads):
        raise ValueError(
            f"value must be (B, N, M, D) with the {batch} images and {num_heads} heads of sampling_locations, "
            f"got {tuple(value.shape)}"
        )
    head_dim = value.shape[-1]
    grids = 2 * sampling_locations - 1
    sizes = [height * width for height, width in spatial_shapes]
    samples = []
    for level, (level_value, (height, width)) in enumerate(zip(value.split(sizes, dim=1), spatial_shapes, strict=True)):
        image = level_value.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, height, width)
        # grid_sample takes a slow path on a strided grid; the copy makes it twice as fast with the same result.
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1).contiguous()
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).flatten(3).flatten(0, 1)[:, None]
    output = (torch.cat(samples, -1) * weights).sum(-1)
    return output.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).contiguous()


def check_sampling_shapes(
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    *,
    num_tokens: int,
) -> None:
    """Raise `ValueError` naming the argument whose shape does not fit."""
    expected = sum(height * width for height, width in spatial_shapes)
    if num_tokens != expected:
        raise ValueError(
            f"value has {num_tokens} tokens, but spatial_shapes {list(spatial_shapes)} add up to {expected}"
        )
    if sampling_locations.dim() != 6 or sampling_locations.shape[-1] != 2:
        raise ValueError(f"sampling_locations must be (B, Q, M, L, P, 2), got {tuple(sampling_locations.shape)}")
    if sampling_locations.shape[3] != len(spatial_shapes):
        raise ValueError(
            f"sampling_locations has {sampling_locations.shape[3]} levels, spatial_shapes has {len(spatial_shapes)}"
        )
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise ValueError(
            f"attention_weights must have the shape {tuple(sampling_locations.shape[:-1])} of sampling_locations, "
            f"got {tuple(attention_weights.shape)}"
        )
