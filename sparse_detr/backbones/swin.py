"""Detectron2's Swin transformer, which here also runs in half precision and in several threads."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import SwinTransformer as D2SwinTransformer
from detectron2.modeling.backbone import swin
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint


class SwinTransformer(D2SwinTransformer):
    """Detectron2's Swin transformer, with the same weights and results, whose forward pass changes no module.

    Detectron2's blocks keep the size of the map from call to call, so threads with images of several sizes disturb each
    other, and an export holds for the traced batch size only. Masks of shifted windows are in the dtype of the weights
    here; Detectron2's are always float32. An export still holds for one height and width.

    Args:
        options: arguments of Detectron2's class.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        for module in self.modules():
            module.__class__ = PARTS.get(type(module), type(module))


class _PatchEmbed(swin.PatchEmbed):
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = self.proj(pad(x, (0, to_whole(width, self.patch_size[1]), 0, to_whole(height, self.patch_size[0]))))
        return x if self.norm is None else self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _PatchMerging(swin.PatchMerging):
    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        batch, _, channels = x.shape
        x = pad(x.view(batch, H, W, channels), (0, 0, 0, to_whole(W, 2), 0, to_whole(H, 2)))
        quarters = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], -1)
        return self.reduction(self.norm(quarters.view(batch, quarters.shape[1] * quarters.shape[2], 4 * channels)))


class _Stage(swin.BasicLayer):
    def forward(self, x: Tensor, H: int, W: int) -> tuple[Tensor, int, int, Tensor, int, int]:
        mask = shifted_window_mask(H, W, self.window_size, self.shift_size, device=x.device).to(x.dtype)
        for block in self.blocks:
            x = checkpoint(block, x, mask, H, W) if self.use_checkpoint else block(x, mask, H, W)
        if self.downsample is None:
            return x, H, W, x, H, W
        return x, H, W, self.downsample(x, H, W), (H + 1) // 2, (W + 1) // 2


class _Block(swin.SwinTransformerBlock):
    def forward(self, x: Tensor, mask: Tensor, H: int, W: int) -> Tensor:
        size, shift, (batch, _, channels) = self.window_size, self.shift_size, x.shape
        grid = pad(self.norm1(x).view(batch, H, W, channels), (0, 0, 0, to_whole(W, size), 0, to_whole(H, size)))
        grid = torch.roll(grid, (-shift, -shift), (1, 2)) if shift else grid
        rows, columns = grid.shape[1] // size, grid.shape[2] // size
        windows = grid.view(batch, rows, size, columns, size, channels).transpose(2, 3).contiguous()
        windows = windows.view(batch * rows * columns, size * size, channels)
        windows = self.attn(windows, mask=mask if shift else None).view(batch, rows, columns, size, size, channels)
        grid = windows.transpose(2, 3).contiguous().view(batch, rows * size, columns * size, channels)
        grid = torch.roll(grid, (shift, shift), (1, 2)) if shift else grid
        x = x + self.drop_path(grid[:, :H, :W].contiguous().view(batch, H * W, channels))
        return x + self.drop_path(self.mlp(self.norm2(x)))


PARTS: dict[type, type] = {
    swin.PatchEmbed: _PatchEmbed,
    swin.PatchMerging: _PatchMerging,
    swin.BasicLayer: _Stage,
    swin.SwinTransformerBlock: _Block,
}


def to_whole(extent: int, size: int) -> int:
    """Return the cells that `extent` lacks to whole windows of `size` cells."""
    return (extent + size - 1) // size * size - extent


def shifted_window_mask(height: int, width: int, size: int, shift: int, *, device: torch.device) -> Tensor:
    """Return what is added to the attention of shifted windows: -100 between cells that were no neighbours.

    Args:
        height, width: of the map, before it is padded to whole windows.
        size: cells of a window's side.
        shift: cells that the map was shifted by.
        device: where the mask is to be.

    Returns:
        (windows, size * size, size * size), 0 or -100.
    """
    axes = []
    for extent in (height, width):
        padded = extent + to_whole(extent, size)
        cells = torch.arange(padded, device=device)
        axes.append((cells >= padded - size).long() + (cells >= padded - shift).long())
    rows, columns = axes[0].shape[0] // size, axes[1].shape[0] // size
    regions = (3 * axes[0][:, None] + axes[1]).view(rows, size, columns, size).transpose(1, 2).contiguous()
    regions = regions.view(rows * columns, size * size)
    return torch.where(regions[:, None] != regions[:, :, None], -100.0, 0.0)
