"""From backbone maps to one sequence of multi-scale tokens (Deformable DETR, section 4.1 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.layers import MaskedGroupNorm, embed_tokens
from sparse_detr.structures import ImageSizes, Pyramid, Tokens, map_size

Padding = Literal["exact", "released"]


class LevelProjection(nn.Module):
    """Convolution and group normalisation from one map to a level of C channels.

    Args:
        in_channels: channels of the map.
        embed_dim: C.
        downsample: halve the map (3x3, stride 2) instead of keeping its size (1x1).
    """

    def __init__(self, *, in_channels: int, embed_dim: int, downsample: bool):
        super().__init__()
        kernel, stride, padding = (3, 2, 1) if downsample else (1, 1, 0)
        self.conv = nn.Conv2d(in_channels, embed_dim, kernel, stride, padding)
        self.norm = MaskedGroupNorm(32, embed_dim)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Project (B, C_in, h, w); the normalisation reads the `valid` (B, h, w) bool cells, or all if it is None."""
        return self.norm(self.conv(x), valid)


class MultiScaleTokenizer(nn.Module):
    """Projects backbone maps, adds coarser levels, flattens them and gives every token its position.

    Args:
        in_channels: channels of the backbone maps, fine to coarse.
        strides: their strides.
        embed_dim: C.
        num_levels: L; levels beyond the backbone's come from 3x3 convolutions of stride 2, the first on the
            unprojected coarsest map.
        padding: `exact` keeps padding out of valid tokens (group normalisation over valid cells, padding set to zero
            before a 3x3 convolution, valid cells of a level rounded up); `released` is the public implementation
            (group normalisation over padding too, padding mask by nearest neighbour).
        position_temperature, position_offset: options of the sine embedding, see `embed_tokens`.

    Raises:
        ValueError: fewer levels than backbone maps.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int,
        num_levels: int,
        padding: Padding = "exact",
        position_temperature: float = 10_000.0,
        position_offset: float = -0.5,
    ):
        super().__init__()
        extra = num_levels - len(in_channels)
        if extra < 0:
            raise ValueError(f"num_levels {num_levels} is less than the {len(in_channels)} maps of the backbone")
        self.embed_dim, self.padding = embed_dim, padding
        self.position_temperature, self.position_offset = position_temperature, position_offset
        self.strides = (*strides, *(strides[-1] * 2 ** (i + 1) for i in range(extra)))
        sources = [*in_channels, *([in_channels[-1]] + [embed_dim] * extra)[:extra]]
        self.num_backbone_levels = len(in_channels)
        self.projections = nn.ModuleList(
            LevelProjection(in_channels=c, embed_dim=embed_dim, downsample=level >= len(in_channels))
            for level, c in enumerate(sources)
        )
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        nn.init.normal_(self.level_embed)

    @property
    def num_levels(self) -> int:
        """L."""
        return self.level_embed.shape[0]

    def forward(self, features: Sequence[Tensor], image_sizes: ImageSizes, padded_size: tuple[int, int]) -> Tokens:
        """Tokenize a batch.

        Args:
            features: backbone maps (B, C_l, h_l, w_l), fine to coarse.
            image_sizes: (h, w) of every image before padding, see `ImageSizes`.
            padded_size: (h, w) of the batch.
        """
        pyramid = self.pyramid(features, image_sizes, padded_size)
        masks = zip(pyramid.split(pyramid.padding_mask), pyramid.spatial_shapes, strict=True)
        valid = [~padding_mask.unflatten(1, shape) for padding_mask, shape in masks]
        content = torch.cat([level.flatten(2).transpose(1, 2) for level in self._project(features, valid, pyramid)], 1)
        return Tokens(content=content, position=self.positions(pyramid), pyramid=pyramid)

    def positions(self, pyramid: Pyramid) -> Tensor:
        """Return (B, N, C), the sine embedding of every token plus the embedding of its level."""
        position = embed_tokens(
            pyramid,
            self.embed_dim,
            dtype=self.level_embed.dtype,
            temperature=self.position_temperature,
            offset=self.position_offset,
        )
        # Expanded, not indexed: on a GPU the gradient of an index with thousands of equal entries is slow.
        rows = zip(self.level_embed, pyramid.level_sizes, strict=True)
        return position + torch.cat([row.expand(size, -1) for row, size in rows])

    def pyramid(self, features: Sequence[Tensor], image_sizes: ImageSizes, padded_size: tuple[int, int]) -> Pyramid:
        """Return the geometry of the levels made of `features`."""
        shapes = [map_size(x) for x in features]
        while len(shapes) < len(self.projections):
            height, width = shapes[-1]
            shapes.append(((height - 1) // 2 + 1, (width - 1) // 2 + 1))
        return level_geometry(
            shapes,
            self.strides,
            image_sizes,
            padded_size,
            padding=self.padding,
            batch_size=features[0].shape[0],
            device=features[0].device,
        )

    def _project(self, features: Sequence[Tensor], valid: list[Tensor], pyramid: Pyramid) -> list[Tensor]:
        levels: list[Tensor] = []
        masked = self.padding == "exact" and pyramid.has_padding
        for level, projection in enumerate(self.projections):
            if level < self.num_backbone_levels:
                source = features[level]
            else:
                first = level == self.num_backbone_levels
                source = features[-1] if first else levels[-1]
                if masked:
                    source = source.masked_fill(~valid[level - 1][:, None], 0)
            levels.append(projection(source, valid[level] if masked else None))
        return levels


def map_geometry(
    features: Sequence[Tensor],
    strides: Sequence[int],
    image_sizes: ImageSizes,
    padded_size: tuple[int, int],
    *,
    padding: Padding,
) -> Pyramid:
    """Return the geometry of the maps (B, C_l, h_l, w_l) themselves; for the other arguments see `level_geometry`."""
    shapes, first = [map_size(x) for x in features], features[0]
    batch_size, device = first.shape[0], first.device
    return level_geometry(
        shapes, strides, image_sizes, padded_size, padding=padding, batch_size=batch_size, device=device
    )


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
    """Return the geometry of levels with these shapes.

    Args:
        shapes: (h, w) of every level.
        strides: strides of the levels.
        image_sizes: (h, w) of every image before padding, see `ImageSizes`.
        padded_size: (h, w) of the batch.
        padding: `exact` rounds the valid cells of a level up; `released` is the public implementation, padding mask by
            nearest neighbour.
        batch_size: B.
        device: device of the geometry's tensors.
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
    """Return how many rows or columns of a level are valid, that is, not padding.

    Args:
        size: pixels of the image, or (B,) long pixels of all images.
        padded: pixels of the padded batch.
        cells: rows or columns of the level.
        stride: stride of the level.
        padding: see `level_geometry`.
    """
    if padding == "released":
        return _nearest_cells(size, padded, cells)
    found = -(-size // stride)
    return found.clamp(max=cells) if isinstance(found, Tensor) else min(found, cells)


def _nearest_cells(size: int | Tensor, padded: int, cells: int) -> int | Tensor:
    """Count the cells whose nearest pixel, floor(cell * padded / cells) in float32, is not padding."""
    nearest = F.interpolate(torch.arange(padded, dtype=torch.float32)[None, None], size=cells)[0, 0]
    if isinstance(size, Tensor):
        return (nearest.to(size.device) < size[:, None]).sum(-1)
    return int((nearest < size).sum())
