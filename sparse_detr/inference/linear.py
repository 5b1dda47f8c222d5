"""Linear layers in inference form: packed once for oneDNN, with ReLU fused, in bfloat16 or with int8 weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.inference import onednn
from sparse_detr.inference.conversion import Conversion, InferenceForm, PackedForm, copied, runs_eagerly
from sparse_detr.layers import MLP, FeedForward

HIDDEN_BYTES = 16 * 2**20
"""Largest size of the activations inside a feed-forward network on a CPU: larger ones leave the cache, and glibc maps
them anew in every call."""


class PackedLinear(PackedForm, nn.Linear):
    """A linear layer in the dtype of its weight; results have the dtype of the input.

    On a CPU the weight is packed for oneDNN too, or quantised to int8 for each output channel, with the input quantised
    in every call. Where a graph is made, and on other devices, it is PyTorch's own layer.

    Args:
        weight: (out, in).
        bias: (out,) or None.
        relu: apply ReLU to the result.
        int8: quantise.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, relu: bool = False, int8: bool = False):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        own_bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_parameter("bias", own_bias)
        self.relu, self.int8 = relu, int8
        self.training = False
        self._pack()

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> PackedLinear:
        """Return the form of an `nn.Linear`."""
        assert isinstance(part, nn.Linear)
        return cls.of_weights(part.weight, part.bias, convert)

    @classmethod
    def of_weights(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        convert: Conversion,
        *,
        relu: bool = False,
        quantize: bool = False,
    ) -> PackedLinear:
        """Return the form of a layer; with `quantize` it has int8 weights if the conversion asks for them."""
        int8 = quantize and convert.int8
        keep = convert.keeping_dtype() if int8 else convert
        bias = None if bias is None else keep.weight(bias)
        return cls(keep.weight(weight), bias, relu=relu, int8=int8)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        return self.multiply(x).to(x.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in), in the dtype of the weight."""
        x = x.to(self.weight.dtype)
        if not runs_eagerly() or self._packed is None:
            y = F.linear(x, self.weight, self.bias)
            return F.relu(y) if self.relu else y
        if self.int8:
            multiply = torch.ops.quantized.linear_relu_dynamic if self.relu else torch.ops.quantized.linear_dynamic
            return multiply(x, self._packed, _reduces_range())
        return onednn.linear(x, self._packed, self.bias, relu=self.relu)

    def _packed_weight(self) -> Any:
        if self.int8 and self.weight.device.type == "cpu":
            return _quantized(self.weight, self.bias)
        return onednn.pack_linear(self.weight) if onednn.can_pack(self.weight) else None


def _quantized(weight: Tensor, bias: Tensor | None) -> Any:
    """Return int8 weights, packed: one scale for each output channel, zero at zero."""
    scale = weight.float().abs().amax(1).clamp(min=1e-12).double() / 127
    zero = torch.zeros(len(scale), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel")  # deprecated
        quantized = torch.quantize_per_channel(weight.float(), scale, zero, 0, torch.qint8)
    return torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias.float())


def _reduces_range() -> bool:
    """Return whether inputs get 7 bits: without VNNI, sums of two products of 8 bits can overflow."""
    return not onednn.supports("vnni")


class InferenceMLP(InferenceForm, MLP):
    """`MLP` with ReLU fused."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceMLP | None:
        """Return the form of an `MLP`; None if its layers are not plain linear ones."""
        assert isinstance(part, MLP)
        if not all(type(layer) is nn.Linear for layer in part.layers):
            return None
        last = len(part.layers) - 1
        layers = [
            PackedLinear.of_weights(layer.weight, layer.bias, convert, relu=i < last)
            for i, layer in enumerate(part.linears)
        ]
        return copied(part, cls, convert, layers=nn.ModuleList(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class InferenceFeedForward(InferenceForm, FeedForward):
    """`FeedForward` with ReLU fused; on a CPU it takes some rows after the others."""

    linear1: PackedLinear
    linear2: PackedLinear

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceFeedForward | None:
        """Return the form of a `FeedForward`; None if its layers are not plain linear ones."""
        assert isinstance(part, FeedForward)
        if not all(type(layer) is nn.Linear for layer in (part.linear1, part.linear2)):
            return None
        first, second = part.linear1, part.linear2
        relu = type(part.activation) is nn.ReLU
        return copied(
            part,
            cls,
            convert,
            linear1=PackedLinear.of_weights(first.weight, first.bias, convert, relu=relu, quantize=True),
            linear2=PackedLinear.of_weights(second.weight, second.bias, convert, quantize=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., C) of (..., C)."""
        if x.device.type != "cpu" or not runs_eagerly():
            return self._rows(x)
        rows = x.reshape(-1, x.shape[-1])
        number = max(HIDDEN_BYTES // (self.linear1.out_features * self.linear1.weight.element_size()), 1)
        if len(rows) <= number:
            return self._rows(rows).view_as(x)
        result = torch.empty_like(rows)
        for some, to in zip(rows.split(number), result.split(number), strict=True):
            to.copy_(self._rows(some))
        return result.view_as(x)

    def _rows(self, x: Tensor) -> Tensor:
        hidden = self.linear1.multiply(x)
        if not self.linear1.relu:
            hidden = self.activation(hidden.to(x.dtype))  # an activation may have weights, of that dtype
        return self.linear2.multiply(hidden).to(x.dtype)
