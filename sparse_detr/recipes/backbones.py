"""Backbones as lazy configs, with what the tokenizer must know of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import LazyCall as L
from detectron2.modeling import ResNet, SwinTransformer
from detectron2.modeling.backbone import Backbone as D2Backbone
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock

from sparse_detr.backbones import MobileNetV2


class Backbone(NamedTuple):
    """A backbone and its maps.

    Args:
        config: LazyCall of a Detectron2 backbone, or the built one.
        in_features: names of the maps to use, fine to coarse.
        in_channels: their channels.
        strides: their strides.
    """

    config: Any
    in_features: tuple[str, ...]
    in_channels: tuple[int, ...]
    strides: tuple[int, ...]


def from_module(backbone: D2Backbone) -> Backbone:
    """Describe a built backbone by its `output_shape()`."""
    shapes = sorted(backbone.output_shape().items(), key=lambda item: item[1].stride)
    return Backbone(
        config=backbone,
        in_features=tuple(name for name, _ in shapes),
        in_channels=tuple(shape.channels for _, shape in shapes),
        strides=tuple(shape.stride for _, shape in shapes),
    )


def resnet(depth: int = 50, *, freeze_at: int = 2, single_scale: bool = False, dilation: bool = False) -> Backbone:
    """ResNet with frozen batch norm, stride in the 3x3 convolutions (torchvision's), C3 to C5.

    Args:
        depth: 50 or 101.
        freeze_at: stages without gradient; 2 is the stem and the first stage.
        single_scale: C5 only.
        dilation: stride 16 at C5 (DC5).
    """
    features = ("res5",) if single_scale else ("res3", "res4", "res5")
    strides = {"res3": 8, "res4": 16, "res5": 16 if dilation else 32}
    channels = {"res3": 512, "res4": 1024, "res5": 2048}
    config = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(resnet_stages)(depth=depth, dilation=dilation),
        out_features=list(features),
        freeze_at=freeze_at,
    )
    return Backbone(config, features, tuple(channels[f] for f in features), tuple(strides[f] for f in features))


def resnet_stages(*, depth: int, dilation: bool = False) -> list[Any]:
    """Bottleneck stages with frozen batch norm; `dilation` replaces the last stage's stride."""
    blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth]
    stages = []
    for i, count in enumerate(blocks):
        dilated = dilation and i == 3
        first_stride = 1 if i == 0 or dilated else 2
        stages.append(
            ResNet.make_stage(
                BottleneckBlock,
                count,
                stride_per_block=[first_stride] + [1] * (count - 1),
                in_channels=64 if i == 0 else 128 * 2**i,
                out_channels=256 * 2**i,
                bottleneck_channels=64 * 2**i,
                dilation=2 if dilated else 1,
                stride_in_1x1=False,
                norm="FrozenBN",
            )
        )
    return stages


def swin_tiny(*, freeze_at: int = 2) -> Backbone:
    """Swin-T with maps of strides 8, 16 and 32, patch embedding and first stage frozen."""
    config = L(SwinTransformer)(
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        drop_path_rate=0.2,
        out_indices=[1, 2, 3],
        frozen_stages=freeze_at,
    )
    return Backbone(config, ("p1", "p2", "p3"), (192, 384, 768), (8, 16, 32))


def mobilenet_v2(*, freeze_at: int = 2) -> Backbone:
    """MobileNetV2 with frozen batch norm and maps of strides 8, 16 and 32.

    Args:
        freeze_at: strides without gradient: 2 is all up to stride 4.
    """
    config = L(MobileNetV2)(out_features=["stride8", "stride16", "stride32"], freeze_at=freeze_at)
    return Backbone(config, ("stride8", "stride16", "stride32"), (32, 96, 1280), (8, 16, 32))
