"""Deformable attention put together from PyTorch's own operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmark.cases import Levels


def official(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the public pure-PyTorch form: one `grid_sample` a level on a strided grid, then a stack."""
    return composite(value, levels, locations, weights, contiguous_grid=False)


def fair(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor) -> Tensor:
    """Compute the same on a contiguous grid, bit-identical at one image and up to twice as fast: the baseline."""
    return composite(value, levels, locations, weights, contiguous_grid=True)


def composite(value: Tensor, levels: Levels, locations: Tensor, weights: Tensor, *, contiguous_grid: bool) -> Tensor:
    """Compute multi-scale deformable attention (Deformable DETR, section 4.1), level by level."""
    dtype, value = value.dtype, value.to(locations.dtype)
    batch, _, num_heads, head_dim = value.shape
    num_queries = locations.shape[1]
    grids = 2 * locations - 1
    samples = []
    maps = value.split([height * width for height, width in levels.shapes], dim=1)
    for level, (height, width) in enumerate(levels.shapes):
        image = maps[level].permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * M, Q, P, 2)
        grid = grid.contiguous() if contiguous_grid else grid
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    stacked = torch.stack(samples, -2).flatten(-2)  # (B * M, D, Q, L * P)
    shares = weights.transpose(1, 2).reshape(batch * num_heads, 1, num_queries, -1)
    output = (stacked * shares).sum(-1).view(batch, num_heads * head_dim, num_queries)
    return output.transpose(1, 2).contiguous().to(dtype)
