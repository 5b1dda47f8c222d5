"""The multi-scale token sequence: its geometry (`Pyramid`) and its contents (`Tokens`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def geometry_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of places, boxes and counts beside features of `dtype`: float32 where those are of half precision.

    8 or 11 bits are too few for a place in a map of 100 cells, or for a box in an image of 1000 pixels.
    """
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Geometry of the feature levels of a padded batch.

    Images are padded at the right and at the bottom, so what is real on a level is a rectangle at its top left.
    Tokens run level by level, row by row within a level.

    Args:
        spatial_shapes: (h, w) of every level of the padded batch.
        valid_shapes: for every image, (h, w) of the unpadded part of every level, at least 1. Kept on the host, so
            that no budget needs a round trip to the device.
        device: where the tensors derived from it live.
    """

    spatial_shapes: tuple[tuple[int, int], ...]
    valid_shapes: tuple[tuple[tuple[int, int], ...], ...]
    device: torch.device

    @property
    def num_tokens(self) -> int:
        """N, the tokens of all levels, padding included."""
        return sum(self.level_sizes)

    @property
    def valid_counts(self) -> list[int]:
        """Tokens of every image that are not padding."""
        return [sum(height * width for height, width in shapes) for shapes in self.valid_shapes]

    @property
    def has_padding(self) -> bool:
        """Whether any token is padding."""
        return any(shapes != self.spatial_shapes for shapes in self.valid_shapes)

    @property
    def level_sizes(self) -> list[int]:
        """Tokens of every level."""
        return [height * width for height, width in self.spatial_shapes]

    def split(self, tokens: Tensor) -> list[Tensor]:
        """Cut (B, N, ...) into one (B, h * w, ...) a level."""
        return list(tokens.split(self.level_sizes, dim=1))

    @cached_property
    def valid_sizes(self) -> Tensor:
        """(B, L, 2) long, `valid_shapes` on the device."""
        return torch.tensor(self.valid_shapes, device=self.device)

    @cached_property
    def cells(self) -> Tensor:
        """(N, 3) long: level, row and column of every token."""
        levels = []
        for level, (height, width) in enumerate(self.spatial_shapes):
            rows, columns = torch.meshgrid(
                torch.arange(height, device=self.device), torch.arange(width, device=self.device), indexing="ij"
            )
            levels.append(torch.stack([torch.full_like(rows, level), rows, columns], -1).flatten(0, 1))
        return torch.cat(levels)

    @cached_property
    def token_valid_sizes(self) -> Tensor:
        """(B, N, 2) long: valid (h, w) of the level that the token lies on."""
        return self.valid_sizes[:, self.cells[:, 0]]

    @cached_property
    def padding_mask(self) -> Tensor:
        """(B, N) bool, True on padding."""
        return (self.cells[None, :, 1:] >= self.token_valid_sizes).any(-1)

    def valid_ratios(self, dtype: torch.dtype) -> Tensor:
        """(B, L, 2): unpadded share of every level as (w, h), in `geometry_dtype`."""
        dtype = geometry_dtype(dtype)
        shapes = torch.tensor(self.spatial_shapes, device=self.device)
        return (self.valid_sizes.to(dtype) / shapes.to(dtype)).flip(-1)

    def centers(self, dtype: torch.dtype) -> Tensor:
        """(B, N, 2): (x, y) of the token centres, in [0, 1] of the unpadded image; above 1 on padding.

        In `geometry_dtype`.
        """
        dtype = geometry_dtype(dtype)
        return ((self.cells[:, 1:].to(dtype) + 0.5) / self.token_valid_sizes.to(dtype)).flip(-1)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Projected backbone features of all levels.

    Args:
        content: (B, N, C) features.
        position: (B, N, C) sine position plus level embedding.
        pyramid: geometry.
    """

    content: Tensor
    position: Tensor
    pyramid: Pyramid
