"""Convolutions in inference form: with the frozen batch norm, an addition and the activation in one call."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.inference import onednn
from sparse_detr.inference.conversion import Conversion, InferenceForm, PackedForm, runs_eagerly

Activation = Literal["none", "relu", "relu6"]
CLAMPS: dict[Activation, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}
"""Activation -> its name and numbers for oneDNN."""


class InferenceConv(InferenceForm, nn.Conv2d):
    """PyTorch's convolution, of an input of any dtype."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, h, w)."""
        return super().forward(x.to(self.weight.dtype))


class FoldedConv(PackedForm):
    """A convolution with the normalisation behind it in its weights, an addition, and an activation.

    On a CPU the weight is packed for oneDNN, and all is one call; elsewhere, and where a graph is made, it is PyTorch's
    convolution, and what follows works in place.

    Args:
        conv: the convolution; see `can_fold`.
        norm: the normalisation; None for none.
        convert: the conversion.
        activation: what follows the addition.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.Module | None, convert: Conversion, *, activation: Activation = "none"
    ):
        super().__init__()
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.activation = activation
        weight, bias = folded(conv, norm)
        self.weight = nn.Parameter(convert.weight(weight), requires_grad=False)
        self.bias = nn.Parameter(convert.weight(bias), requires_grad=False)
        self.training = False
        self._pack()

    def forward(self, x: Tensor, added: Tensor | None = None, *, in_place: bool = False) -> Tensor:
        """Return the activation of the convolution of (B, C, h, w) plus `added`, which `in_place` overwrites."""
        x = x.to(self.weight.dtype)
        fused = added is None or self.activation != "relu6"  # oneDNN adds and clamps in two calls
        if not runs_eagerly() or self._packed is None or not fused:
            y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
            y = y if added is None else y + added
            return _activate(y, self.activation)
        ops, weight = torch.ops.mkldnn, self._packed.packed_for(x)
        where = self.padding, self.stride, self.dilation, self.groups
        name, numbers = CLAMPS[self.activation]
        if added is None:
            return ops._convolution_pointwise(x, weight, self.bias, *where, name, numbers, "")
        end = *where, "add", 1.0, None if name == "none" else name, numbers, ""
        if in_place:
            return ops._convolution_pointwise_.binary(added, x, weight, self.bias, *end)
        return ops._convolution_pointwise.binary(x, added, weight, self.bias, *end)

    def _packed_weight(self) -> Any:
        if not onednn.can_pack(self.weight):
            return None
        where: dict[str, Any] = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        return onednn.PackedConvolution(self.weight, **where, groups=self.groups)


def can_fold(conv: nn.Module | None, norm: nn.Module | None) -> bool:
    """Return whether `FoldedConv` can take a convolution and the normalisation behind it."""
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return False
    return norm is None or all(
        isinstance(getattr(norm, name, None), Tensor) for name in ("running_mean", "running_var")
    )


def folded(conv: nn.Conv2d, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of the convolution with the normalisation, which uses fixed means and variances."""
    weight = conv.weight.detach()
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight, bias
    wide = torch.promote_types(weight.dtype, torch.float64)
    scale = (norm.running_var.to(wide) + norm.eps).rsqrt()
    if getattr(norm, "weight", None) is not None:
        scale = scale * norm.weight.detach().to(wide)
    shift = -norm.running_mean.to(wide) * scale
    if getattr(norm, "bias", None) is not None:
        shift = shift + norm.bias.detach().to(wide)
    return (weight.to(wide) * scale[:, None, None, None]).to(weight.dtype), (bias * scale + shift).to(weight.dtype)


def _activate(x: Tensor, activation: Activation) -> Tensor:
    if activation == "none":
        return x
    return F.relu_(x) if activation == "relu" else F.hardtanh_(x, 0.0, 6.0)


class InferenceBackbone(InferenceForm):
    """A backbone that gets its images in its dtype, and with the channels last if it has a `FoldedConv`.

    Args:
        body: the backbone, converted.
        dtype: its dtype; None for that of the images.
    """

    def __init__(self, body: nn.Module, *, dtype: torch.dtype | None):
        super().__init__()
        self.body, self.dtype = body, dtype
        self.channels_last = any(isinstance(module, FoldedConv) for module in body.modules())
        self.training = False

    def forward(self, images: Tensor) -> Any:
        """Return maps by name of images (B, 3, H, W)."""
        images = images if self.dtype is None else images.to(self.dtype)
        return self.body(images.contiguous(memory_format=torch.channels_last) if self.channels_last else images)

    def output_shape(self) -> Any:
        """Return channels and stride of every map by name."""
        return self.body.output_shape()  # type: ignore[operator]
