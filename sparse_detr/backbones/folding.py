"""Frozen batch norms folded into the convolutions before them, in training too.

A frozen norm scales and shifts every channel by constants. Folded, the scale is on the weights of the convolution and
the shift is its bias, so that no step reads or keeps the map once more. Weights keep their names and values, and get
the same gradient; results differ by rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


class FoldedConv2d(Conv2d):
    """Detectron2's convolution with a frozen batch norm as `norm`, folded."""

    norm: FrozenBatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', h', w') of (B, C, h, w)."""
        x = folded_convolution(self, self.norm, x)
        return x if self.activation is None else self.activation(x)


class FoldedSequential(nn.Sequential):
    """A sequence in which every convolution is followed by its frozen batch norm, folded."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C', h', w') of (B, C, h, w)."""
        children = iter(self)
        for child in children:
            x = folded_convolution(child, next(children), x) if isinstance(child, nn.Conv2d) else child(x)
        return x


def fold_frozen_norms(network: nn.Module) -> None:
    """Fold the frozen batch norms of a network, in place, where Detectron2's or torchvision's blocks hold them.

    A norm stays as it is if it is not frozen, or if it does not follow a convolution in one of these two ways.
    """
    for module in network.modules():
        if type(module) is Conv2d and isinstance(module.norm, FrozenBatchNorm2d):
            module.__class__ = FoldedConv2d
        elif isinstance(module, nn.Sequential) and _alternates(module):
            module.__class__ = FoldedSequential


def _alternates(sequence: nn.Sequential) -> bool:
    """Return whether the sequence has convolutions, and a frozen batch norm behind each."""
    children = list(sequence)
    convolutions = [i for i, child in enumerate(children) if type(child) is nn.Conv2d]
    norms = [i for i, child in enumerate(children) if isinstance(child, FrozenBatchNorm2d)]
    return bool(convolutions) and norms == [i + 1 for i in convolutions]


def folded_convolution(conv: nn.Conv2d, norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
    """Return `norm(conv(x))` of (B, C, h, w)."""
    weight, bias = folded_weight(conv, norm)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def folded_weight(conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the convolution with the norm, with the gradient of the convolution's weight."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    bias = norm.bias - norm.running_mean * scale
    if conv.bias is not None:
        bias = bias + conv.bias * scale
    return conv.weight * scale[:, None, None, None], bias


def use_channels_last(backbone: nn.Module) -> None:
    """Let a backbone of convolutions compute with channels as the last dimension in memory, in place.

    oneDNN and cuDNN compute convolutions so, and else convert every map. Tokens have their channels last too, so that
    they need no copy. The weights stay as they are, and what reads the maps sees the same shapes.
    """
    backbone.register_forward_pre_hook(_channels_last)


def _channels_last(module: nn.Module, arguments: tuple[Tensor]) -> Tensor:
    return arguments[0].contiguous(memory_format=torch.channels_last)
