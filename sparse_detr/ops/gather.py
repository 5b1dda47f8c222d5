"""The op without `grid_sample`, for exported files: every bilinear sample is four rows of the value, taken by index.

Runtimes have indexing in an old and fast form; `grid_sample` many have not, or only a slow one. A corner outside of the
map is taken at the border with the weight zero. The arguments are those of the schemas in `library.py`.

It is made for inference: gradients at locations that are not finite, and autocast, are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_detr.ops.argument_checks import as_pairs
from sparse_detr.ops.reference import OUTSIDE, locate_samples

Corner = tuple[Tensor, Tensor]
"""Of one of the four corners of every sample: the rows of the value (R, S, D), and their shares of the samples (R, S),
which sum to 1 over the corners of a sample inside of the map. R is B * Q * M, S is L * P: sizes that are open in a file
are formulas for the tracer, and one product of them is cheaper than three factors in every operation."""


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
    weights = weights.flatten(0, 2).flatten(1)
    reads = [
        torch.bmm((weights * shares)[:, None], rows) for rows, shares in _corners(value, points, padding_mask, sizes)
    ]
    return _total(reads).reshape(*points.shape[:2], value.shape[2] * value.shape[3]).to(value.dtype)


def sample_products(
    value: Tensor, points: Tensor, query: Tensor, padding_mask: Tensor | None, spatial_shapes: Sequence[int]
) -> Tensor:
    """Return the product of every bilinear sample of `value` with its query (B, Q, M * D), (B, Q, M, L, P)."""
    sizes = torch.tensor(as_pairs(spatial_shapes), device=value.device)
    return products_at(value, points, query, padding_mask, sizes)


def products_at(value: Tensor, points: Tensor, query: Tensor, padding_mask: Tensor | None, sizes: Tensor) -> Tensor:
    """Return `sample_products`, with the (h, w) of every level as a tensor (L, 2)."""
    by_head = query.to(points.dtype).reshape(-1, value.shape[-1], 1)  # (R, D, 1)
    products = [
        torch.bmm(rows, by_head)[..., 0] * shares for rows, shares in _corners(value, points, padding_mask, sizes)
    ]
    return _total(products).reshape(points.shape[:-1])


def _corners(value: Tensor, locations: Tensor, padding_mask: Tensor | None, sizes: Tensor) -> Iterator[Corner]:
    """Yield one corner of all samples after the other, so that the rows of one are in memory at a time."""
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    (batch_size, num_tokens, num_heads, head_dim), num_points = value.shape, locations.shape[4]
    rows = value.to(locations.dtype).reshape(-1, head_dim)  # row (image * N + token) * M + head
    areas = sizes[:, 0] * sizes[:, 1]
    first = (areas.cumsum(0) - areas).repeat_interleave(num_points, output_size=locations.shape[3] * num_points)
    images = torch.arange(batch_size, device=value.device)[:, None, None] * (num_tokens * num_heads)
    heads = images + torch.arange(num_heads, device=value.device)
    heads = heads.expand(-1, locations.shape[1], -1).flatten()[:, None]  # (R, 1), the image's first row of the head
    locations = locations.flatten(0, 2).flatten(1, 2)
    sizes = sizes.repeat_interleave(num_points, 0, output_size=len(first))
    for columns, shares_x, lines, shares_y in _cells(locations, sizes.flip(-1)):
        tokens = first + lines * sizes[:, 1] + columns
        yield F.embedding(tokens * num_heads + heads, rows), shares_x * shares_y


def _cells(locations: Tensor, sizes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Yield the column and row of every corner, (R, S) long, each with its share of the sample along its axis.

    Args:
        locations: (R, S, 2), as (x, y).
        sizes: (S, 2) long, (w, h) of the level of every sample.
    """
    pixels = (locations * sizes.to(locations.dtype) - 0.5).nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=OUTSIDE)
    low, last = pixels.floor(), (sizes - 1).to(locations.dtype)
    high_share = pixels - low
    ends = []
    for cells, shares in ((low, 1 - high_share), (low + 1, high_share)):
        inside = (cells >= 0) & (cells <= last)
        columns, lines = torch.minimum(cells.clamp(min=0), last).long().unbind(-1)
        shares_x, shares_y = torch.where(inside, shares, 0).unbind(-1)
        ends.append(((columns, shares_x), (lines, shares_y)))
    for _, line in ends:
        for column, _ in ends:
            yield *column, *line


def _total(terms: Sequence[Tensor]) -> Tensor:
    first, *rest = terms
    return sum(rest, start=first)
