"""The multi-scale token sequence: its geometry (`Pyramid`) and its contents (`Tokens`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index
from typing import Any

import torch
from torch import Tensor

Shapes = tuple[tuple[int, int], ...]
ImageSizes = Sequence[tuple[int, int]] | Tensor | None
"""(h, w) of every image before padding.

A sequence of pairs is known on the host: nothing waits for the device, and a batch without padding skips the steps that
only padding needs. A (B, 2) long tensor is for `torch.export` and `torch.compile`: no step depends on its values. None
means that every image fills the batch.
"""


def check_image_sizes(sizes: ImageSizes, images: Tensor) -> None:
    """Raise `ValueError` for sizes that (B, channels, H, W) `images` cannot have.

    Of a tensor, shape and type are looked at, its values are not.
    """
    if sizes is None:
        return
    batch_size, _, *limits = images.shape
    if isinstance(sizes, Tensor):
        whole = not (sizes.is_floating_point() or sizes.is_complex() or sizes.dtype == torch.bool)
        if whole and sizes.ndim == 2 and sizes.shape[0] == batch_size and sizes.shape[1] == 2:
            return
        given = f"sizes is a tensor {tuple(sizes.shape)} of {sizes.dtype}"
    else:
        try:
            pairs = [[index(side) for side in pair] for pair in sizes]
        except TypeError:
            pairs = []
        fits = [
            len(pair) == 2 and all(1 <= n <= limit for n, limit in zip(pair, limits, strict=True)) for pair in pairs
        ]
        if len(pairs) == batch_size and all(fits):
            return
        given = f"sizes is {sizes!r}"
    raise ValueError(
        f"{given}; give (h, w) before padding of each of the {batch_size} images, at least 1 and at most "
        f"{tuple(limits)}: pairs of whole numbers, or a ({batch_size}, 2) tensor of int64"
    )


def geometry_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of positions, boxes and counts for features of `dtype`: at least float32.

    The 8 or 11 bits of half precision are too few for a position in a map of 100 cells or a box in an image of 1000
    pixels.
    """
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Geometry of the feature levels of a padded batch; `Pyramid.of` makes one.

    Images are padded at the right and at the bottom, so the unpadded part of a level is a rectangle at its top left.
    Tokens run level by level, row by row within a level.

    Args:
        spatial_shapes: (h, w) of every level of the padded batch.
        valid_sizes: (B, L, 2) long, (h, w) of the unpadded part of every level of every image, at least 1.
        valid_counts: number of valid tokens of every image, on the host; None if only the device knows it.
        has_padding: whether any token is padding; True if only the device knows it.
        cells: (N, 3) long: level, row and column of every token.
        token_valid_sizes: (B, N, 2) long: `valid_sizes` of the level that the token lies on.
        padding_mask: (B, N) bool, True on padding.
    """

    spatial_shapes: Shapes
    valid_sizes: Tensor
    valid_counts: list[int] | None
    has_padding: bool
    cells: Tensor
    token_valid_sizes: Tensor
    padding_mask: Tensor

    @staticmethod
    def of(
        spatial_shapes: Shapes, valid_shapes: Sequence[Shapes] | Tensor, *, device: torch.device | None = None
    ) -> Pyramid:
        """Make a pyramid.

        Args:
            spatial_shapes: (h, w) of every level of the padded batch.
            valid_shapes: for every image, (h, w) of the unpadded part of every level, on the host; or the same as a
                (B, L, 2) long tensor, whose values are not read.
            device: device of the tensors; that of `valid_shapes` if it is a tensor.
        """
        if isinstance(valid_shapes, Tensor):
            return _pyramid(spatial_shapes, valid_shapes, valid_counts=None, has_padding=True)
        counts = [sum(height * width for height, width in shapes) for shapes in valid_shapes]
        padded = any(tuple(shapes) != tuple(spatial_shapes) for shapes in valid_shapes)
        valid_sizes = torch.tensor(valid_shapes, device=device)
        return _pyramid(spatial_shapes, valid_sizes, valid_counts=counts, has_padding=padded)

    @staticmethod
    def unpadded(spatial_shapes: Shapes, batch_size: int, *, device: torch.device) -> Pyramid:
        """Make the pyramid of a batch without padding; sizes may be symbolic."""
        valid_sizes = torch.tensor(spatial_shapes, device=device).expand(batch_size, -1, -1)
        return _pyramid(spatial_shapes, valid_sizes, valid_counts=None, has_padding=False)

    @property
    def batch_size(self) -> int:
        """B."""
        return self.valid_sizes.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.valid_sizes.device

    @property
    def num_tokens(self) -> int:
        """N, the tokens of all levels, padding included."""
        return self.cells.shape[0]

    @property
    def level_sizes(self) -> list[int]:
        """Tokens of every level."""
        return [height * width for height, width in self.spatial_shapes]

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Split (B, N, ...) into (B, h * w, ...) of every level."""
        return list(tokens.split(self.level_sizes, dim=1))

    def valid_ratios(self, dtype: torch.dtype) -> Tensor:
        """Return (B, L, 2): the unpadded share of every level as (w, h), in `geometry_dtype`."""
        dtype = geometry_dtype(dtype)
        shapes = torch.tensor(self.spatial_shapes, device=self.device)
        return (self.valid_sizes.to(dtype) / shapes.to(dtype)).flip(-1)

    def centers(self, dtype: torch.dtype) -> Tensor:
        """Return (B, N, 2): (x, y) of the token centres, in [0, 1] of the unpadded image; above 1 on padding.

        In `geometry_dtype`.
        """
        dtype = geometry_dtype(dtype)
        return ((self.cells[:, 1:].to(dtype) + 0.5) / self.token_valid_sizes.to(dtype)).flip(-1)


def _pyramid(spatial_shapes: Shapes, valid_sizes: Tensor, **fields: Any) -> Pyramid:
    levels = []
    for level, (height, width) in enumerate(spatial_shapes):
        rows, columns = torch.meshgrid(
            torch.arange(height, device=valid_sizes.device),
            torch.arange(width, device=valid_sizes.device),
            indexing="ij",
        )
        levels.append(torch.stack([torch.full_like(rows, level), rows, columns], -1).flatten(0, 1))
    cells = torch.cat(levels)
    token_valid_sizes = valid_sizes[:, cells[:, 0]]
    return Pyramid(
        spatial_shapes=tuple(spatial_shapes),
        valid_sizes=valid_sizes,
        cells=cells,
        token_valid_sizes=token_valid_sizes,
        padding_mask=(cells[None, :, 1:] >= token_valid_sizes).any(-1),
        **fields,
    )


def map_size(x: Tensor) -> tuple[int, int]:
    """Return (h, w) of a map (..., h, w): numbers, symbolic in an export; constants in a trace of torch.jit."""
    height, width = x.shape[-2:]
    return (int(height), int(width)) if torch.jit.is_tracing() else (height, width)


def at_most(number: int, limit: int) -> int:
    """Return the smaller of two numbers: constant in a trace of torch.jit; symbolic in an export, if not known."""
    if torch.jit.is_tracing():
        return min(int(number), int(limit))
    if isinstance(limit, torch.SymInt) and not torch.compiler.is_dynamo_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        if statically_known_true(number <= limit):
            return number
    return torch.sym_min(number, limit)  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """Projected backbone maps, for models that sample maps which are no tokens.

    Args:
        content: (B, N, C), the cells of all maps, level by level, row by row within a level.
        pyramid: geometry of the maps, fine to coarse.
    """

    content: Tensor
    pyramid: Pyramid


@dataclass(frozen=True, eq=False)
class AxisPositions:
    """The positions of the columns and rows of one map, for attention that takes one axis at a time (Anchor DETR).

    Args:
        x: (B, w, C), of every column.
        y: (B, h, C), of every row.
        embed: coordinate (...), in [0, 1] of the unpadded image -> position (..., C). It made `x` and `y`; queries that
            are compared with them get their positions from it too.
    """

    x: Tensor
    y: Tensor
    embed: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Projected backbone features of all levels.

    Args:
        content: (B, N, C) features.
        position: (B, N, C) sine position plus level embedding.
        pyramid: geometry.
        mask: (B, N) bool, True where there is no token, for tokens that are not cells of the pyramid, such as pooled
            ones; None where the padding mask of the pyramid says it.
        maps: all projected maps, of which the tokens are a part, for models that sample maps later; None for others.
        axes: positions of columns and rows, for models that attend to one axis at a time; None for all others.
    """

    content: Tensor
    position: Tensor
    pyramid: Pyramid
    mask: Tensor | None = None
    maps: FeatureMaps | None = None
    axes: AxisPositions | None = None

    @property
    def padding_mask(self) -> Tensor:
        """(B, N) bool, True on padding."""
        return self.pyramid.padding_mask if self.mask is None else self.mask

    @property
    def has_padding(self) -> bool:
        """Whether some token may be padding."""
        return self.pyramid.has_padding if self.mask is None else True
