"""Group normalisation without padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparse_detr.structures import geometry_dtype


class MaskedGroupNorm(nn.GroupNorm):
    """`GroupNorm` with mean and variance over valid cells only, so that padding does not change valid features.

    Args:
        num_groups: number of groups of channels.
        num_channels: C, a multiple of it.

    Raises:
        ValueError: the channels cannot be divided into so many groups.
    """

    def __init__(self, num_groups: int, num_channels: int):
        if num_channels % num_groups:
            raise ValueError(
                f"group normalisation divides the channels into {num_groups} groups, but embed_dim is {num_channels}; "
                f"give a multiple of {num_groups}"
            )
        super().__init__(num_groups, num_channels)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return the normalised map.

        Args:
            x: (B, C, h, w).
            valid: (B, h, w) bool, False on padding; None takes every cell, as `GroupNorm` does.

        Returns:
            (B, C, h, w), with `valid` in the dtype of the weights.
        """
        if valid is None:
            # Not the forward of nn.GroupNorm, which refuses groups of one value, as a map of one cell may have.
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        # Counts and sums of half precision maps need float32. Filling, unlike multiplication by 0, also removes NaN.
        groups = x.to(geometry_dtype(x.dtype)).unflatten(1, (self.num_groups, -1))
        padding_mask = ~valid[:, None, None]
        count = valid.sum((-2, -1), dtype=groups.dtype).view(-1, 1, 1, 1, 1) * groups.shape[2]
        mean = groups.masked_fill(padding_mask, 0).sum((2, 3, 4), keepdim=True) / count
        centred = (groups - mean).masked_fill(padding_mask, 0)
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normalised = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        scaled = normalised * self.weight[:, None, None] + self.bias[:, None, None]
        return scaled.to(self.weight.dtype)
