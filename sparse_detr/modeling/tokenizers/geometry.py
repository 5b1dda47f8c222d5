"""Where the images of a padded batch end on every level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_detr.structures import ImageSizes, Pyramid

Padding = Literal["exact", "released"]


def level_geometry(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_sizes: ImageSizes,
    padded_size: tuple[int, int],
    *,
    padding: Padding,
    batch_size: int,
    device: torch.device,
) -> Pyramid:
    """Return the geometry of levels of known shapes.

    Args:
        shapes: (h, w) of every level.
        strides: of the levels.
        image_sizes: (h, w) of every image before padding, see `ImageSizes`.
        padded_size: (h, w) of the batch.
        padding: `exact`, a level's real part is its real pixels rounded up; `released` is the public implementation,
            mask by nearest neighbour.
        batch_size: B.
        device: where the geometry's tensors are to be.
    """
    levels = tuple(shapes)
    if image_sizes is None:
        return Pyramid.unpadded(levels, batch_size, device=device)
    if isinstance(image_sizes, Tensor):
        sizes = image_sizes.to(device)
        axes = [
            [valid_cells(sizes[:, i], padded_size[i], shape[i], stride, padding) for i in (0, 1)]
            for shape, stride in zip(levels, strides, strict=True)
        ]
        return Pyramid.of(levels, torch.stack([torch.stack(axis, -1) for axis in axes], 1))  # type: ignore[arg-type]
    valid = tuple(
        tuple(
            tuple(valid_cells(size[i], padded_size[i], shape[i], stride, padding) for i in (0, 1))
            for shape, stride in zip(levels, strides, strict=True)
        )
        for size in image_sizes
    )
    return Pyramid.of(levels, valid, device=device)  # type: ignore[arg-type]


def valid_cells(size: int | Tensor, padded: int, cells: int, stride: int, padding: Padding) -> int | Tensor:
    """Return how many rows or columns of a level are real.

    Args:
        size: pixels of the image, or (B,) long pixels of all images.
        padded: pixels of the batch.
        cells: rows or columns of the level.
        stride: of the level.
    """
    if padding == "released":
        return _nearest_cells(size, padded, cells)
    found = -(-size // stride)
    return found.clamp(max=cells) if isinstance(found, Tensor) else min(found, cells)


def _nearest_cells(size: int | Tensor, padded: int, cells: int) -> int | Tensor:
    """Count cells whose nearest pixel, floor(cell * padded / cells) in float32, is real."""
    nearest = F.interpolate(torch.arange(padded, dtype=torch.float32)[None, None], size=cells)[0, 0]
    if isinstance(size, Tensor):
        return (nearest.to(size.device) < size[:, None]).sum(-1)
    return int((nearest < size).sum())
