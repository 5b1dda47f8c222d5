"""oneDNN's fused operations on packed weights, through the operators that PyTorch has for its own compiler.

A packed weight is an opaque tensor that is neither copied nor saved; it is made again from the plain weight.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

OPERATORS = ("_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise", "_reorder_convolution_weight")
PACKED_ROWS = 4096
"""Rows that packed weights of linear layers are laid out for; other numbers of rows work too."""
PACKED_MAP = (100, 128)
"""(h, w) of the map that packed weights of convolutions are laid out for; other maps work too."""


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


def pack_convolution(
    weight: Tensor, *, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Return (out, in / groups, h, w) weights packed."""
    size = [1, weight.shape[1] * groups, *PACKED_MAP]
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(memory_format=torch.channels_last), padding, stride, dilation, groups, size
    )
