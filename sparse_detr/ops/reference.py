"""The op in plain PyTorch: what every other backend must equal, and what runs where none is available.

It can be differentiated twice where `grid_sample` can (not in PyTorch 2.10). The arguments are those of the schemas in
`library.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# A location from which no bilinear sample touches a map, whatever the map's size.
OUTSIDE = -2.0


def deformable_attention(
    value: Tensor,
    points: Tensor,
    weights: Tensor,
    reference_points: Tensor | None,
    padding_mask: Tensor | None,
    spatial_shapes: Sequence[int],
) -> Tensor:
    """(B, Q, M * D), the weighted bilinear samples of `value`; in the fused form where there are reference points."""
    shapes = as_pairs(spatial_shapes)
    readable = points.isfinite()
    if reference_points is not None:
        readable = readable & reference_points.isfinite().all(-1)[:, :, None, :, None, None]
        # Put aside before they are multiplied, for a gradient of zero times infinity would be NaN.
        reference_points = torch.where(reference_points.isfinite(), reference_points, 0)
        points, weights = locate_samples(reference_points, torch.where(readable, points, 0), weights, shapes)
        readable = readable & points.isfinite()
    points = torch.where(readable.all(-1, keepdim=True), points, OUTSIDE)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    return _read(value.to(points.dtype), points, weights, shapes).to(value.dtype)


def locate_samples(
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
) -> tuple[Tensor, Tensor]:
    """Sampling locations (B, Q, M, L, P, 2), (x, y) in [0, 1] of the padded level, and weights (B, Q, M, L, P).

    The arguments are those of `fused_deformable_attention`. Half precision is widened to float32, for a location needs
    more than its 8 or 11 bits.
    """
    offsets, logits = _widen(sampling_offsets), _widen(attention_logits)
    centers = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 2:
        sizes = torch.tensor(spatial_shapes, device=offsets.device, dtype=offsets.dtype).flip(-1)
        scale = 1 / sizes[:, None]
    else:
        scale = reference_points[:, :, None, :, None, 2:] * (0.5 / offsets.shape[-2])
    return centers + offsets * scale, logits.flatten(3).softmax(-1).view_as(logits)


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def splat_attention(locations: Tensor, weights: Tensor, spatial_shapes: Sequence[int], pixel_offset: float) -> Tensor:
    """(B, N), the weight that every token received."""
    weights = torch.where(locations.isfinite().all(-1), weights, 0)
    locations = torch.where(locations.isfinite(), locations, OUTSIDE)
    levels = []
    for level, (height, width) in enumerate(as_pairs(spatial_shapes)):
        size = torch.tensor([width, height], device=locations.device, dtype=locations.dtype)
        pixels = locations[:, :, :, level].flatten(1, -2) * size + pixel_offset
        levels.append(_splat_level(pixels, weights[:, :, :, level].flatten(1), height, width))
    return torch.cat(levels, 1)


def as_pairs(spatial_shapes: Sequence[int]) -> list[tuple[int, int]]:
    """(h, w) of every level, from h0, w0, h1, w1, ..."""
    return list(zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))


def _read(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    batch, num_queries, num_heads = locations.shape[:3]
    head_dim = value.shape[-1]
    grids = 2 * locations - 1
    sizes = [height * width for height, width in shapes]
    samples = []
    for level, (level_value, (height, width)) in enumerate(zip(value.split(sizes, dim=1), shapes, strict=True)):
        image = level_value.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, height, width)
        # grid_sample takes a slow path on a strided grid; the copy makes it twice as fast with the same result.
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1).contiguous()
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).flatten(3).flatten(0, 1)[:, None]
    output = (torch.cat(samples, -1) * weights).sum(-1)
    return output.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).contiguous()


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
