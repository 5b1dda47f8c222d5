"""The deformable attention of DAT: all queries attend to one set of points, which the image moves.

    query  = proj_q(x)
    offset = what small convolutions say of the query, at every cell of a regular grid of keys
    points = regular grid + bounded offset              one set for an image and group of heads
    key, value = projections of x, sampled at the points
    y = proj_out(softmax(query key / sqrt(D) + bias(query cell - point)) value)

Coordinates are (y, x) and run from -1 to 1 over a map. There are two conventions, which no weight's shape shows:

|                              | "2022", the paper's code     | "2023", the code of DAT++              |
|------------------------------|------------------------------|----------------------------------------|
| key cell i of n              | (i + 0.5) / n * 2 - 1        | (i + 0.5) / (n - 1) * 2 - 1            |
| range factor s > 0           | tanh(offset) * s / n         | tanh(offset) * s / (n - 1)             |
| s = 0                        | offset without a bound       | no offset                              |
| s < 0                        | tanh(key cell + offset)      | clamp(key cell + offset, -1, 1)        |
| query cell i of H, for bias  | (i + 0.5) / H * 2 - 1        | i / (H - 1) * 2 - 1                    |
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, scaled_dot_product_attention

Convention = Literal["2022", "2023"]
Position = Literal["table", "convolution", "none"]


class KeyPoints(NamedTuple):
    """The points that keys and values are sampled at.

    Args:
        grid: (h, w, 2), the regular grid of key cells, in (y, x).
        moved: (B, groups, h, w, 2), the points.
    """

    grid: Tensor
    moved: Tensor


class ChannelNorm(nn.Module):
    """Layer norm over the channels of maps (B, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every cell."""
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class DeformedKeyAttention(nn.Module):
    """Attention of all cells to keys at deformed points (DAT, section 3.2; its name there is deformable attention).

    Heads form groups of equal size; each group has its own points. Samples beyond the map are zeros, so that their keys
    and values are the biases of the projections. The table of biases is stretched over the map, whatever its size.

    Args:
        channels: C of the map.
        num_heads: M, divides the channels.
        num_groups: G, divides the heads.
        map_size: (height, width) of the map that the table of biases was made for.
        kernel_size: of the convolution that offsets are predicted with.
        stride: of the same; there is one key for a square of this side.
        range_factor: bounds the offsets, see the table of this file; 2 is at most a key cell.
        position: `table`: a bias for every displacement, interpolated. `convolution`: instead, a depthwise convolution
            of the query is added to the result. `none`: neither.
        convention: see the table of this file.

    Raises:
        ValueError: heads, groups or channels do not divide, or an option has no such value.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        num_groups: int,
        map_size: tuple[int, int],
        kernel_size: int,
        stride: int = 1,
        range_factor: float = 2.0,
        position: Position = "table",
        convention: Convention = "2022",
    ):
        super().__init__()
        if num_heads < 1 or num_groups < 1 or channels % num_heads or num_heads % num_groups:
            raise ValueError(
                f"{num_groups} groups must divide {num_heads} heads, and these {channels} channels, without remainder"
            )
        if position not in ("table", "convolution", "none"):
            raise ValueError(f"position must be table, convolution or none, got {position!r}")
        self.num_heads, self.num_groups = num_heads, num_groups
        self.convention = convention = check_convention(convention)
        self.range_factor, self.position = range_factor, position
        width = channels // num_groups
        padding = 0 if convention == "2023" and kernel_size == stride else kernel_size // 2
        self.conv_offset = nn.Sequential(
            nn.Conv2d(width, width, kernel_size, stride, padding, groups=width),
            ChannelNorm(width),
            nn.GELU(),
            nn.Conv2d(width, 2, 1, bias=False),
        )
        self.proj_q, self.proj_k, self.proj_v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        if position == "convolution":
            self.rpe_table = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        elif position == "table":
            height, width = map_size
            self.rpe_table = nn.Parameter(Tensor(num_heads, 2 * height - 1, 2 * width - 1))
            nn.init.trunc_normal_(self.rpe_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Attend from every cell of maps (B, C, H, W) to all points of its image.

        Raises:
            ValueError: see `points`.
        """
        query = self.proj_q(x)
        points = self.points(query)
        samples = self.sample(x, points)
        heads = (
            map_.unflatten(1, (self.num_heads, -1)) for map_ in (query, self.proj_k(samples), self.proj_v(samples))
        )
        per_head = [map_.flatten(3).transpose(2, 3) for map_ in heads]
        y = scaled_dot_product_attention(*per_head, attn_mask=self.bias(query, points))
        y = y.transpose(2, 3).flatten(1, 2).unflatten(2, x.shape[2:])
        return self.proj_out(y + self.rpe_table(query) if self.position == "convolution" else y)

    def points(self, query: Tensor) -> KeyPoints:
        """Return the points for projected maps (B, C, H, W); positions are float32 or better.

        Raises:
            ValueError: there is a single key cell along an axis, where the convention of 2023 divides by zero.
        """
        offset = self.conv_offset(query.unflatten(1, (self.num_groups, -1)).flatten(0, 1))
        offset = offset.unflatten(0, (-1, self.num_groups)).permute(0, 1, 3, 4, 2)
        offset = offset.to(torch.promote_types(offset.dtype, torch.float32))
        size = offset.shape[2:4]
        if self.convention == "2023" and min(size) < 2:
            raise ValueError(f"the convention of 2023 needs 2 key cells along each axis, got {tuple(size)}")
        cells = [length - (self.convention == "2023") for length in size]
        grid = _grid([((_cells(n, offset) + 0.5) / count * 2 - 1) for n, count in zip(size, cells, strict=True)])
        if self.range_factor < 0:
            moved = grid + offset
            return KeyPoints(grid, moved.tanh() if self.convention == "2022" else moved.clamp(-1, 1))
        if self.range_factor > 0 or self.convention == "2023":
            axes = zip(offset.tanh().unbind(-1), cells, strict=True)
            offset = torch.stack([axis * self.range_factor / count for axis, count in axes], -1)
        return KeyPoints(grid, grid + offset)

    def sample(self, x: Tensor, points: KeyPoints) -> Tensor:
        """Return (B, C, h, w): every group's channels of maps (B, C, H, W) at its points."""
        groups = x.unflatten(1, (self.num_groups, -1)).flatten(0, 1).to(points.moved.dtype)
        return (
            _bilinear(groups, points.moved.flatten(0, 1)).to(x.dtype).unflatten(0, (-1, self.num_groups)).flatten(1, 2)
        )

    def bias(self, query: Tensor, points: KeyPoints) -> Tensor | None:
        """Return (B, M, H * W, h * w): what is added to the logits of every cell and point; None without a table."""
        if self.position != "table":
            return None
        moved, inside = points.moved, self.convention == "2022"  # else the centres of outer cells lie on the border
        axes = [_cells(n, moved) + 0.5 if inside else _cells(n, moved) for n in query.shape[2:]]
        cells = _grid([axis / (n if inside else n - 1) * 2 - 1 for axis, n in zip(axes, query.shape[2:], strict=True)])
        apart = (cells.flatten(0, 1)[:, None] - moved.flatten(2, 3)[:, :, None]) / 2
        tables = self.rpe_table.unflatten(0, (self.num_groups, -1)).to(moved.dtype)
        tables = tables.expand(moved.shape[0], *tables.shape).flatten(0, 1)
        return _bilinear(tables, apart.flatten(0, 1)).to(query.dtype).unflatten(0, (-1, self.num_groups)).flatten(1, 2)


def check_convention(convention: Convention | int) -> Convention:
    """Return the convention as text; a command line gives a year as a number.

    Raises:
        ValueError: there is no such convention.
    """
    for known in get_args(Convention):
        if str(convention) == known:
            return known
    raise ValueError(f"convention must be '2022' or '2023', got {convention!r}")


def _cells(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype, device=like.device)


def _grid(axes: list[Tensor]) -> Tensor:
    """Return (h, w, 2) from the positions of rows and of columns."""
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


def _bilinear(maps: Tensor, points: Tensor) -> Tensor:
    """Sample maps at points in (y, x): -1 and 1 are the centres of the first and the last cell; zeros beyond."""
    return grid_sample(maps, points.flip(-1), mode="bilinear", padding_mode="zeros", align_corners=True)
