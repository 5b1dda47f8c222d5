"""oneDNN's fused operations on packed weights, through the operators that PyTorch has for its own compiler.

A packed weight is an opaque tensor that is neither copied nor saved; it is made again from the plain weight.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise",
    "_reorder_convolution_weight",
    "_get_mkldnn_serialized_md",
)
PACKED_ROWS = 4096
"""Rows that packed weights of linear layers are laid out for; other numbers of rows work too."""
MOST_LAYOUTS, MOST_SIZES = 4, 1024
"""How many packed weights a convolution keeps, and for how many sizes of its input it remembers which one to take."""
_LAYOUT_FROM = 112
"""Where a memory descriptor's layout starts; before it come the data type and four bytes of any content."""


@cache
def has_operators() -> bool:
    """Return whether this PyTorch has the operators."""
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS)


@cache
def takes_bfloat16() -> bool:
    """Return whether oneDNN multiplies bfloat16 matrices here."""
    return has_operators() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def has_fast_bfloat16() -> bool:
    """Return whether this CPU has instructions for bfloat16; oneDNN emulates them on others with AVX-512."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return takes_bfloat16() and supports("avx512_bf16")
    return takes_bfloat16()


def supports(instructions: str) -> bool:
    """Return whether PyTorch says that this x86 CPU has some instructions, such as `vnni`."""
    return bool(getattr(torch.cpu, f"_is_{instructions}_supported", bool)())


def can_pack(weight: Tensor) -> bool:
    """Return whether oneDNN takes a weight of this device and dtype."""
    if weight.device.type != "cpu" or not has_operators():
        return False
    return weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and takes_bfloat16())


def pack_linear(weight: Tensor) -> Tensor:
    """Return (out, in) weights packed."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_ROWS)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
    """Return the linear layer of (..., in), with ReLU if asked for."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "relu" if relu else "none", [], "")


class PackedConvolution:
    """The weight of a convolution, packed for the sizes of its inputs.

    oneDNN chooses the layout by the size of the map, and converts a weight in another layout in every call, which may
    take ten times as long as the convolution. So the weight is packed at the first input of a size; sizes with the same
    layout share it.

    Args:
        weight: (out, in / groups, h, w).
        stride, padding, dilation, groups: of the convolution.
    """

    def __init__(
        self, weight: Tensor, *, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
    ):
        self.weight, self.where = weight, (padding, stride, dilation, groups)
        self._by_size: dict[tuple[int, ...], Tensor] = {}
        self._by_layout: dict[bytes, Tensor] = {}

    def packed_for(self, x: Tensor) -> Tensor:
        """Return the weight in the layout for inputs of the size of `x`, (B, C, h, w)."""
        size = tuple(x.shape)
        packed = self._by_size.get(size)
        return self._pack(size) if packed is None else packed

    def _pack(self, size: tuple[int, ...]) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.where, size)
        layout = bytes(torch.ops.mkldnn._get_mkldnn_serialized_md(packed)[_LAYOUT_FROM:].tolist())
        too_many_layouts = layout not in self._by_layout and len(self._by_layout) >= MOST_LAYOUTS
        if too_many_layouts or len(self._by_size) >= MOST_SIZES:
            self._by_size, self._by_layout = {}, {}
        packed = self._by_layout.setdefault(layout, packed)
        self._by_size[size] = packed
        return packed
