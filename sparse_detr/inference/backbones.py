"""Detectron2's ResNet and our MobileNetV2 in inference form."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

# ruff: noqa: E402 - the check must come before what it checks for
from sparse_detr._detectron2 import require_detectron2

require_detectron2()

from detectron2.layers import Conv2d
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torchvision.models.mobilenetv2 import InvertedResidual

from sparse_detr.backbones import MobileNetV2
from sparse_detr.inference.conversion import Conversion, InferenceForm, copied
from sparse_detr.inference.convolution import Activation, FoldedConv, can_fold


class FoldedDetectron2Conv(InferenceForm):
    """Detectron2's convolution with a normalisation; `of` makes a `FoldedConv`."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> FoldedConv | None:
        """Return the form; None if the normalisation is not fixed or an activation follows."""
        assert isinstance(part, Conv2d)
        return None if part.activation is not None else folded_conv(part, convert)


def folded_conv(conv: Any, convert: Conversion, activation: Activation = "none") -> FoldedConv | None:
    """Return Detectron2's convolution with its normalisation folded; None if that cannot be."""
    if not can_fold(conv, conv.norm) or conv.activation is not None:
        return None
    return FoldedConv(conv, conv.norm, convert, activation=activation)


class InferenceStem(InferenceForm, BasicStem):
    """Detectron2's first convolution of a ResNet, with ReLU fused."""

    conv1: FoldedConv

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceStem | None:
        """Return the form of a stem; None if its normalisation is not fixed."""
        conv = folded_conv(part.conv1, convert, "relu")
        return None if conv is None else copied(part, cls, convert, conv1=conv)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map of stride 4."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class InferenceResidualBlock(InferenceForm):
    """Detectron2's block of a ResNet, with ReLU and the addition fused.

    Attributes:
        owns_input: nothing else reads the input, so that the result may take its memory.
    """

    convs: tuple[str, ...] = ()
    owns_input = False
    shortcut: FoldedConv | None

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceResidualBlock | None:
        """Return the form of a block; None if a normalisation is not fixed."""
        inside = {name: folded_conv(getattr(part, name), convert, "relu") for name in cls.convs}
        if part.shortcut is not None:
            inside["shortcut"] = folded_conv(part.shortcut, convert)
        return None if None in inside.values() else copied(part, cls, convert, **inside)

    def forward(self, x: Tensor) -> Tensor:
        """Return the map after the block."""
        *first, last = (getattr(self, name) for name in self.convs)
        y = x
        for conv in first:
            y = conv(y)
        if self.shortcut is None:
            return last(y, x, in_place=self.owns_input)
        return last(y, self.shortcut(x), in_place=True)


class InferenceBottleneckBlock(InferenceResidualBlock, BottleneckBlock):
    """Detectron2's block of three convolutions."""

    convs = ("conv1", "conv2", "conv3")


class InferenceBasicBlock(InferenceResidualBlock, BasicBlock):
    """Detectron2's block of two convolutions."""

    convs = ("conv1", "conv2")


class InferenceResNet(InferenceForm, ResNet):
    """Detectron2's ResNet. From the second block of a stage on, blocks own their input."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceResNet:
        """Return the form of a ResNet."""
        result = copied(part, cls, convert)
        stages: Any = result.stages
        for stage in stages:
            for block in list(stage)[1:]:
                block.owns_input = True
        return result


class InferenceMobileNetV2(InferenceForm, MobileNetV2):
    """`MobileNetV2` with ReLU6 and the addition fused."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceMobileNetV2 | None:
        """Return the form of a `MobileNetV2`; None if it has other layers than torchvision's."""
        assert isinstance(part, MobileNetV2)
        made = [_mobile_block(block, convert) for block in part.features]
        blocks = [block for block in made if block is not None]
        if len(blocks) < len(made):
            return None
        return copied(part, cls, convert, features=nn.ModuleList(blocks))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps by name of images (B, 3, H, W)."""
        outputs = {}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self._ends:
                outputs[self._ends[index]] = x
        return outputs


class InvertedBlock(InferenceForm):
    """Convolutions one after the other, with the input added to the result if asked for.

    Args:
        convs: the convolutions.
        residual: add the input, whose memory the result takes: a map that the backbone returns is never such an input.
    """

    def __init__(self, convs: list[FoldedConv], *, residual: bool):
        super().__init__()
        self.convs, self.residual = nn.ModuleList(convs), residual
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the map after the block."""
        *first, last = self.convs
        y = x
        for conv in first:
            y = conv(y)
        return last(y, x, in_place=True) if self.residual else last(y)


def _mobile_block(block: nn.Module, convert: Conversion) -> InvertedBlock | None:
    """Return the form of a block of torchvision's MobileNetV2; None for any other."""
    layers: list[Any] = [layer for layer in block.modules() if not list(layer.children())]
    convs: list[FoldedConv] = []
    while layers:
        conv, norm = layers.pop(0), layers.pop(0) if layers else None
        active = bool(layers) and isinstance(layers[0], nn.ReLU6)
        if active:
            layers.pop(0)
        if not can_fold(conv, norm):
            return None
        convs.append(FoldedConv(conv, norm, convert, activation="relu6" if active else "none"))
    return InvertedBlock(convs, residual=isinstance(block, InvertedResidual) and block.use_res_connect)


FORMS: dict[type, type[InferenceForm]] = {
    Conv2d: FoldedDetectron2Conv,
    BasicStem: InferenceStem,
    ResNet: InferenceResNet,
    BottleneckBlock: InferenceBottleneckBlock,
    BasicBlock: InferenceBasicBlock,
    MobileNetV2: InferenceMobileNetV2,
}
