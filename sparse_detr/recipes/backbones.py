"""Backbones as lazy configs, with what the tokenizer must know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.modeling.backbone import Backbone as D2Backbone
from detectron2.modeling.backbone.resnet import BasicStem, BottleneckBlock

from sparse_detr.backbones import MobileNetV2, SwinTransformer


class BackboneSpec(NamedTuple):
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


def from_module(backbone: D2Backbone) -> BackboneSpec:
    """Describe a built backbone by its `output_shape()`."""
    shapes = sorted(backbone.output_shape().items(), key=lambda item: item[1].stride)
    return BackboneSpec(
        config=backbone,
        in_features=tuple(name for name, _ in shapes),
        in_channels=tuple(shape.channels for _, shape in shapes),
        strides=tuple(shape.stride for _, shape in shapes),
    )


def resnet(depth: int = 50, *, freeze_at: int = 2, num_maps: int = 3, dilation: bool = False) -> BackboneSpec:
    """ResNet with frozen batch norm, stride in the 3x3 convolutions (torchvision's).

    Args:
        depth: 50 or 101.
        freeze_at: stages without gradient: 1 is the stem, 2 the stem and the first stage.
        num_maps: the last so many of C2 to C5.
        dilation: stride 16 at C5 (DC5).
    """
    strides = (4, 8, 16, 16 if dilation else 32)
    maps = _last_maps(("res2", "res3", "res4", "res5"), (256, 512, 1024, 2048), strides, num_maps)
    config = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(resnet_stages)(depth=depth, dilation=dilation),
        out_features=list(maps[0]),
        freeze_at=freeze_at,
    )
    return BackboneSpec(config, *maps)


def resnet_stages(*, depth: int, dilation: bool = False) -> list[Any]:
    """Bottleneck stages with frozen batch norm; `dilation` replaces the last stage's stride.

    As in torchvision, and unlike Detectron2's `RES5_DILATION`, the block that lost its stride is not dilated yet: the
    published DC5 weights were trained so.
    """
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
                dilation_per_block=[1] + [2 if dilated else 1] * (count - 1),
                in_channels=64 if i == 0 else 128 * 2**i,
                out_channels=256 * 2**i,
                bottleneck_channels=64 * 2**i,
                stride_in_1x1=False,
                norm="FrozenBN",
            )
        )
    return stages


class SwinSize(NamedTuple):
    """What differs between the published Swin transformers; `drop_path_rate` as DINO's detectors use it."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    drop_path_rate: float


SWIN_SIZES = {
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.1),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.2),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.2),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.2),
}


def swin(
    size: str = "tiny",
    *,
    image_size: int = 224,
    num_maps: int = 3,
    freeze_at: int = 0,
    drop_path_rate: float | None = None,
) -> BackboneSpec:
    """Swin transformer with a norm for each map.

    Args:
        size: of `SWIN_SIZES`.
        image_size: 224 or 384, of the ImageNet images that the weights are from; the windows are a 32nd of it.
        num_maps: the last so many of the maps of strides 4, 8, 16 and 32.
        freeze_at: parts without gradient: 0 none, 1 the patch embedding, 2 that and the first stage.
        drop_path_rate: of the last block; None for that of the size.
    """
    if size not in SWIN_SIZES or image_size not in (224, 384):
        raise ValueError(f"no Swin {size!r} for images of {image_size}: {', '.join(SWIN_SIZES)}; 224 or 384")
    embed_dim, depths, num_heads, usual_rate = SWIN_SIZES[size]
    channels = tuple(embed_dim * 2**i for i in range(4))
    maps = _last_maps(("p0", "p1", "p2", "p3"), channels, (4, 8, 16, 32), num_maps)
    config = L(SwinTransformer)(
        pretrain_img_size=image_size,
        embed_dim=embed_dim,
        depths=list(depths),
        num_heads=list(num_heads),
        window_size=image_size // 32,
        drop_path_rate=usual_rate if drop_path_rate is None else drop_path_rate,
        out_indices=list(range(4 - num_maps, 4)),
        frozen_stages=freeze_at or -1,  # Detectron2's 0 is the patch embedding, as its 1 is
    )
    return BackboneSpec(config, *maps)


def swin_tiny(*, freeze_at: int = 2) -> BackboneSpec:
    """Swin-T as in Sparse DETR, patch embedding and first stage frozen."""
    return swin("tiny", freeze_at=freeze_at, drop_path_rate=0.2)


def mobilenet_v2(*, freeze_at: int = 2) -> BackboneSpec:
    """MobileNetV2 with frozen batch norm and maps of strides 8, 16 and 32.

    Args:
        freeze_at: strides without gradient: 2 is all up to stride 4.
    """
    config = L(MobileNetV2)(out_features=["stride8", "stride16", "stride32"], freeze_at=freeze_at)
    return BackboneSpec(config, ("stride8", "stride16", "stride32"), (32, 96, 1280), (8, 16, 32))


def _last_maps(
    names: Sequence[str], channels: Sequence[int], strides: Sequence[int], count: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    if not 0 < count <= len(names):
        raise ValueError(f"num_maps must be 1 to {len(names)}, got {count}")
    return tuple(names[-count:]), tuple(channels[-count:]), tuple(strides[-count:])


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """`swin` for `MODEL.BACKBONE.NAME`, with the arguments in `MODEL.SWIN` and `MODEL.BACKBONE.FREEZE_AT`."""
    options = {key.lower(): value for key, value in cfg.MODEL.SWIN.items() if value is not None}
    return instantiate(swin(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, **options).config)


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """C5 alone at stride 16 for `MODEL.BACKBONE.NAME`, dilated as torchvision does it: see `resnet_stages`."""
    depth, freeze_at = cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.BACKBONE.FREEZE_AT
    return instantiate(resnet(depth, freeze_at=freeze_at, num_maps=1, dilation=True).config)
