"""Attention within windows of a map, which may be shifted; at any size of the map."""

from __future__ import annotations

from torch import Tensor, arange, nn, roll
from torch.nn.functional import pad, scaled_dot_product_attention

from sparse_detr.backbones.swin import shifted_window_mask, to_whole


class WindowAttention(nn.Module):
    """Attention of the cells of a window to each other, with a learned bias for every displacement.

    A map that is no whole number of windows is padded with zeros at the right and bottom. As in the public detection
    code the padding takes part: its keys and values are the biases of the projection.

    Args:
        channels: C of the map.
        num_heads: M, divides the channels.
        window_size: cells of a window's side.
        shift: cells that windows are shifted by; 0 for none. Cells that were no neighbours do not see each other.
    """

    def __init__(self, *, channels: int, num_heads: int, window_size: int, shift: int = 0):
        super().__init__()
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.proj_qkv = nn.Linear(channels, 3 * channels)
        self.proj_out = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(Tensor((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within the windows of maps (B, C, H, W)."""
        size, shift, (batch, channels, height, width) = self.window_size, self.shift, x.shape
        x = pad(x, (0, to_whole(width, size), 0, to_whole(height, size))).permute(0, 2, 3, 1)
        x = roll(x, (-shift, -shift), (1, 2)) if shift else x
        rows, columns = x.shape[1] // size, x.shape[2] // size
        windows = x.reshape(batch, rows, size, columns, size, channels).transpose(2, 3).flatten(3, 4)
        qkv = self.proj_qkv(windows).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.view(batch, rows * columns, size**2, *qkv.shape[-3:]).permute(3, 0, 1, 4, 2, 5)
        windows = scaled_dot_product_attention(query, key, value, attn_mask=self._bias(height, width))
        windows = self.proj_out(windows.transpose(2, 3).flatten(-2))
        x = windows.view(batch, rows, columns, size, size, channels).transpose(2, 3).flatten(1, 2).flatten(2, 3)
        x = roll(x, (shift, shift), (1, 2)) if shift else x
        return x[:, :height, :width].permute(0, 3, 1, 2)

    def _bias(self, height: int, width: int) -> Tensor:
        """Return what is added to the logits: (M, w², w²), for shifted windows (windows, M, w², w²)."""
        table, size = self.relative_position_bias_table, self.window_size
        cells = arange(size, device=table.device)
        apart = cells[:, None] - cells + size - 1  # query minus key
        index = (2 * size - 1) * apart[:, None, :, None] + apart[None, :, None, :]
        bias = table[index.view(size**2, size**2)].permute(2, 0, 1)
        if not self.shift:
            return bias
        mask = shifted_window_mask(height, width, size, self.shift, device=table.device)
        return bias + mask[:, None].to(bias.dtype)
