"""The op without `grid_sample`, for exported files: every bilinear sample is four rows of the value, taken by index.

Runtimes have indexing in an old and fast form; `grid_sample` many have not, or only a slow one. A corner outside of the
map is taken at the border with the weight zero. The arguments are those of the schemas in `library.py`.

It is made for inference: gradients at locations that are not finite, and autocast, are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparse_detr.ops.argument_checks import as_pairs
from sparse_detr.ops.reference import OUTSIDE, locate_samples

Corner = tuple[Tensor, Tensor]
"""Of one of the four corners of every sample: the rows of the value (B, Q, M, L, P, D), and their shares of the samples
(B, Q, M, L, P), which sum to 1 over the corners of a sample inside of the map."""


def deformable_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    """Return the weighted bilinear samples of `value`, (B, Q, M * D); the fused form if there are references."""
    sizes = torch.tensor(as_pairs(spatial_shapes), device=value.device)
    if reference_points is not None:
        points, weights = locate_samples(reference_points, points, weights, sizes)
    reads = [
        (weights * shares).flatten(3)[..., None, :] @ rows.flatten(3, 4)
        for rows, shares in _corners(value, points, padding_mask, sizes)
    ]
    return _total(reads).squeeze(-2).flatten(2).to(value.dtype)


def sample_products(
    value: Tensor, points: Tensor, query: Tensor, padding_mask: Tensor | None, spatial_shapes: Sequence[int]
) -> Tensor:
    """Return the product of every bilinear sample of `value` with its query (B, Q, M * D), (B, Q, M, L, P)."""
    sizes = torch.tensor(as_pairs(spatial_shapes), device=value.device)
    return products_at(value, points, query, padding_mask, sizes)


def products_at(value: Tensor, points: Tensor, query: Tensor, padding_mask: Tensor | None, sizes: Tensor) -> Tensor:
    """Return `sample_products`, with the (h, w) of every level as a tensor (L, 2)."""
    by_head = query.to(points.dtype).unflatten(-1, (points.shape[2], -1))[..., None]  # (B, Q, M, D, 1)
    products = [
        (rows.flatten(3, 4) @ by_head).view_as(shares) * shares
        for rows, shares in _corners(value, points, padding_mask, sizes)
    ]
    return _total(products)


def _corners(value: Tensor, locations: Tensor, padding_mask: Tensor | None, sizes: Tensor) -> Iterator[Corner]:
    """Yield one corner of all samples after the other, so that the rows of one are in memory at a time."""
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    _, num_tokens, num_heads, head_dim = value.shape
    rows = value.to(locations.dtype).reshape(-1, head_dim)  # row (image * N + token) * M + head
    areas = sizes[:, 0] * sizes[:, 1]
    first = areas.cumsum(0) - areas
    images = torch.arange(value.shape[0], device=value.device)[:, None, None, None, None] * num_tokens
    heads = torch.arange(num_heads, device=value.device)[:, None, None]
    for columns, shares_x, lines, shares_y in _cells(locations, sizes.flip(-1)[:, None]):
        tokens = images + first[:, None] + lines * sizes[:, 1:] + columns
        index = tokens * num_heads + heads
        yield rows.index_select(0, index.flatten()).view(*index.shape, head_dim), shares_x * shares_y


def _cells(locations: Tensor, sizes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the column and row of every corner, (B, Q, M, L, P) long, each with its share of the sample along its axis.

    Args:
        locations: (B, Q, M, L, P, 2), as (x, y).
        sizes: (L, 1, 2) long, (w, h) of every level.
    """
    pixels = (locations * sizes.to(locations.dtype) - 0.5).nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=OUTSIDE)
    low, last = pixels.floor(), (sizes - 1).to(locations.dtype)
    high_share = pixels - low
    ends = []
    for cells, shares in ((low, 1 - high_share), (low + 1, high_share)):
        inside = (cells >= 0) & (cells <= last)
        ends.append((torch.minimum(cells.clamp(min=0), last).long(), torch.where(inside, shares, 0)))
    for lines, shares_y in ends:
        for columns, shares_x in ends:
            yield columns[..., 0], shares_x[..., 0], lines[..., 1], shares_y[..., 1]


def _total(terms: Sequence[Tensor]) -> Tensor:
    first, *rest = terms
    return sum(rest, start=first)
