"""The op without `grid_sample`, for exported files: every bilinear sample is four rows of the value, taken by index.

Runtimes have indexing in an old and fast form; `grid_sample` many have not, or only a slow one. A corner outside of the
map is taken at the border with the weight zero. The arguments are those of the schemas in `library.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparse_detr.ops.argument_checks import as_pairs
from sparse_detr.ops.reference import OUTSIDE, locate_samples

Level = tuple[Tensor, Tensor]
"""Of the samples of one level: the rows at their corners (B, Q, M, P * 4, D), and the shares of the corners
(B, Q, M, P, 4), which sum to 1 inside of the map."""


def deformable_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    """Return the weighted bilinear samples of `value`, (B, Q, M * D); the fused form if there are references."""
    shapes = as_pairs(spatial_shapes)
    if reference_points is not None:
        points, weights = locate_samples(reference_points, points, weights, shapes)
    output: Tensor | None = None
    for (rows, shares), level in zip(_levels(value, points, padding_mask, shapes), weights.unbind(3), strict=True):
        read = ((shares * level[..., None]).flatten(3)[..., None, :] @ rows).squeeze(-2)
        output = read if output is None else output + read
    assert output is not None, "there is at least one level"
    return output.flatten(2).to(value.dtype)


def sample_products(
    value: Tensor, points: Tensor, query: Tensor, padding_mask: Tensor | None, spatial_shapes: Sequence[int]
) -> Tensor:
    """Return the product of every bilinear sample of `value` with its query (B, Q, M * D), (B, Q, M, L, P)."""
    by_head = query.to(points.dtype).unflatten(-1, (points.shape[2], -1))[..., None]  # (B, Q, M, D, 1)
    levels = [
        ((rows @ by_head).unflatten(3, (-1, 4)).squeeze(-1) * shares).sum(-1)
        for rows, shares in _levels(value, points, padding_mask, as_pairs(spatial_shapes))
    ]
    return torch.stack(levels, 3)


def _levels(
    value: Tensor, locations: Tensor, padding_mask: Tensor | None, shapes: Sequence[tuple[int, int]]
) -> Iterator[Level]:
    """Yield the corners of the samples level by level, so that those of one level are in memory at a time."""
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    batch, num_tokens, num_heads, head_dim = value.shape
    rows = value.to(locations.dtype).reshape(-1, head_dim)  # row (image * N + token) * M + head
    images = torch.arange(batch, device=value.device)[:, None, None, None, None] * num_tokens
    heads = torch.arange(num_heads, device=value.device)[:, None, None]
    start = 0
    for level, (height, width) in enumerate(shapes):
        cells, shares = _corners(locations[:, :, :, level], height, width)
        index = (images + start + cells) * num_heads + heads
        yield rows.index_select(0, index.flatten()).view(*index.shape, head_dim).flatten(3, 4), shares
        start = start + height * width


def _corners(locations: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the cells around (..., 2) locations, (..., 4) long, and how much of the sample each one is."""
    size = torch.tensor([width, height], device=locations.device, dtype=locations.dtype)
    pixels = (locations * size - 0.5).nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=OUTSIDE)
    low = pixels.floor()
    high_share = pixels - low
    corners = torch.stack([low, low + 1], -1)  # (..., 2 axes, 2 corners)
    shares = torch.stack([1 - high_share, high_share], -1)
    last = size[:, None] - 1
    shares = torch.where((corners >= 0) & (corners <= last), shares, 0)
    columns, rows = torch.minimum(corners.clamp(min=0), last).long().unbind(-2)
    cells = rows[..., :, None] * width + columns[..., None, :]
    return cells.flatten(-2), (shares[..., 1, :, None] * shares[..., 0, None, :]).flatten(-2)
