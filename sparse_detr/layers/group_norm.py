"""Group normalisation that does not look at padding."""

from __future__ import annotations

from torch import Tensor, nn


class MaskedGroupNorm(nn.GroupNorm):
    """`GroupNorm` with mean and variance over real positions only, so that padding does not change real features."""

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """Normalise a map.

        Args:
            x: (B, C, h, w).
            real: (B, h, w) bool, True where the image is; None takes every position, as `GroupNorm` does.
        """
        if real is None:
            return super().forward(x)
        groups = x.unflatten(1, (self.num_groups, -1))
        weight = real[:, None, None].to(x.dtype)
        count = weight.sum((-2, -1), keepdim=True) * groups.shape[2]
        mean = (groups * weight).sum((2, 3, 4), keepdim=True) / count
        centred = (groups - mean) * weight
        variance = centred.square().sum((2, 3, 4), keepdim=True) / count
        normalised = (centred * (variance + self.eps).rsqrt()).flatten(1, 2)
        return normalised * self.weight[:, None, None] + self.bias[:, None, None]
