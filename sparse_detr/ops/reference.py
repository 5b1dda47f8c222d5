"""The op in plain PyTorch: what every other backend must equal, and what runs where there is no other backend.

It can be differentiated twice where `grid_sample` can (not in PyTorch 2.10). The arguments are those of the schemas in
`library.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_detr.ops.argument_checks import as_pairs

# A location, a coordinate of grid_sample's and a pixel coordinate from which no sample touches a map of any size.
OUTSIDE = -4.0


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
        points, weights = _locate_readable(reference_points, points, weights, shapes)
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    return _read(value.to(points.dtype), points, weights, shapes).to(value.dtype)


def sample_products(
    value: Tensor, points: Tensor, query: Tensor, padding_mask: Tensor | None, spatial_shapes: Sequence[int]
) -> Tensor:
    """Return the product of every bilinear sample of `value` with its query (B, Q, M * D), (B, Q, M, L, P)."""
    if padding_mask is not None:
        value = value.masked_fill(padding_mask[:, :, None, None], 0)
    samples = _samples(value.to(points.dtype), points, as_pairs(spatial_shapes))
    by_head = query.to(points.dtype).unflatten(-1, (points.shape[2], -1)).transpose(1, 2).flatten(0, 1)  # (B * M, Q, D)
    products = (samples * by_head.transpose(1, 2)[..., None]).sum(1)
    return products.view(points.shape[0], points.shape[2], points.shape[1], *points.shape[3:5]).transpose(1, 2)


def locate_samples(
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    spatial_shapes: Sequence[tuple[int, int]] | Tensor,
) -> tuple[Tensor, Tensor]:
    """Return locations (B, Q, M, L, P, 2), (x, y) in [0, 1] of the padded level, and weights (B, Q, M, L, P).

    The arguments are those of `fused_deformable_attention`; the shapes may be a tensor (L, 2) too. Half
    precision is widened to float32, for a location needs more than its 8 or 11 bits.
    """
    logits = _widen(attention_logits)
    locations = sampling_locations(reference_points, sampling_offsets, spatial_shapes)
    return locations, logits.flatten(3).softmax(-1).view_as(logits)


def sampling_locations(
    reference_points: Tensor, sampling_offsets: Tensor, spatial_shapes: Sequence[tuple[int, int]] | Tensor
) -> Tensor:
    """Return the locations alone; see `locate_samples`."""
    offsets = _widen(sampling_offsets)
    centers = reference_points[:, :, None, :, None, :2]
    if reference_points.shape[-1] == 2:
        sizes = spatial_shapes if isinstance(spatial_shapes, Tensor) else torch.tensor(spatial_shapes)
        scale = 1 / sizes.to(offsets).flip(-1)[:, None]
    else:
        scale = reference_points[:, :, None, :, None, 2:] * (0.5 / offsets.shape[-2])
    return centers + offsets * scale


def _widen(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _locate_readable(
    reference_points: Tensor, offsets: Tensor, logits: Tensor, shapes: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Call `locate_samples` so that infinite numbers get the gradient zero and not NaN."""
    if reference_points.shape[-1] == 2:  # no input is multiplied with another, so no gradient with an infinity
        return locate_samples(reference_points, offsets, logits, shapes)
    nowhere = reference_points.new_tensor([OUTSIDE, OUTSIDE, 0, 0])
    references = torch.where(reference_points.isfinite().all(-1, keepdim=True), reference_points, nowhere)
    readable = offsets.isfinite()
    locations, weights = locate_samples(references, torch.where(readable, offsets, 0), logits, shapes)
    return torch.where(readable, locations, OUTSIDE), weights


def splat_attention(locations: Tensor, weights: Tensor, spatial_shapes: Sequence[int], pixel_offset: float) -> Tensor:
    """Return the weight that every token received, (B, N)."""
    levels = []
    for level, (height, width) in enumerate(as_pairs(spatial_shapes)):
        size = torch.tensor([width, height], device=locations.device, dtype=locations.dtype)
        pixels = _readable(locations[:, :, :, level].flatten(1, -2) * size + pixel_offset)
        levels.append(_splat_level(pixels, weights[:, :, :, level].flatten(1), height, width))
    return torch.cat(levels, 1)


def _readable(coordinates: Tensor) -> Tensor:
    """Move coordinates outside where they are infinite or NaN; one of (x, y) is enough to move the sample."""
    return coordinates.nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=OUTSIDE)


def _read(value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    batch, num_queries, num_heads = locations.shape[:3]
    head_dim = value.shape[-1]
    weights = weights.transpose(1, 2).flatten(3).flatten(0, 1)[:, None]
    output = (_samples(value, locations, shapes) * weights).sum(-1)
    return output.view(batch, num_heads * head_dim, num_queries).transpose(1, 2).contiguous()


def _samples(value: Tensor, locations: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Return the bilinear samples (B * M, D, Q, L * P)."""
    batch, _, num_heads = locations.shape[:3]
    head_dim = value.shape[-1]
    grids = _readable(2 * locations - 1)
    sizes = [height * width for height, width in shapes]
    samples = []
    for level, (level_value, (height, width)) in enumerate(zip(value.split(sizes, dim=1), shapes, strict=True)):
        image = level_value.permute(0, 2, 3, 1).reshape(batch * num_heads, head_dim, height, width)
        # grid_sample takes a slow path on a strided grid; the copy makes it twice as fast with the same result.
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1).contiguous()
        samples.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    return torch.cat(samples, -1)


def _splat_level(pixels: Tensor, weights: Tensor, height: int, width: int) -> Tensor:
    """Return (B, h * w) from (B, S, 2) pixel coordinates and (B, S) weights."""
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
