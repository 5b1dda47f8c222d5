"""Backbones as lazy configs, with the names, channels and strides of their maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.config import CfgNode, instantiate
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ResNet
from detectron2.modeling.backbone import Backbone as D2Backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

from sparse_detr.backbones import DAT, MobileNetV2, SwinTransformer, TimmBackbone, timm_maps
from sparse_detr.backbones.dat import Convention, check_convention
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.280, 103.530), (58.395, 57.120, 57.375)


class BackboneSpec(NamedTuple):
    """A backbone and the description of its maps.

    Args:
        config: LazyCall of a Detectron2 backbone, or a built backbone.
        in_features: names of the maps to use, fine to coarse.
        in_channels: channels of these maps.
        strides: strides of these maps.
        weights: name of its ImageNet weights, for `train.init_checkpoint` and `MODEL.WEIGHTS`; "" if there are none.
        pixel_mean, pixel_std: of the images of its weights, RGB, from 0 to 255; None for those of ImageNet.
    """

    config: Any
    in_features: tuple[str, ...]
    in_channels: tuple[int, ...]
    strides: tuple[int, ...]
    weights: str = ""
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None

    def coarsest(self) -> BackboneSpec:
        """Return the same backbone with the last map alone to use; it still computes all of its maps."""
        return self._replace(
            in_features=self.in_features[-1:], in_channels=self.in_channels[-1:], strides=self.strides[-1:]
        )


def from_module(backbone: D2Backbone) -> BackboneSpec:
    """Describe a built backbone by its `output_shape()`."""
    shapes = sorted(backbone.output_shape().items(), key=lambda item: item[1].stride)
    return BackboneSpec(
        config=backbone,
        in_features=tuple(name for name, _ in shapes),
        in_channels=tuple(shape.channels for _, shape in shapes),
        strides=tuple(shape.stride for _, shape in shapes),
    )


class ResNetSize(NamedTuple):
    """The blocks of a ResNet, stage by stage, and their kind: basic, or bottleneck with four times the channels."""

    blocks: tuple[int, ...]
    bottleneck: bool

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of C2 to C5."""
        return tuple((256 if self.bottleneck else 64) * 2**i for i in range(4))


RESNET_SIZES = {
    18: ResNetSize((2, 2, 2, 2), bottleneck=False),
    34: ResNetSize((3, 4, 6, 3), bottleneck=False),
    50: ResNetSize((3, 4, 6, 3), bottleneck=True),
    101: ResNetSize((3, 4, 23, 3), bottleneck=True),
    152: ResNetSize((3, 8, 36, 3), bottleneck=True),
}


def resnet(depth: int = 50, *, freeze_at: int = 2, num_maps: int = 3, dilation: bool = False) -> BackboneSpec:
    """Return ResNet with frozen batch norm and strides in the 3x3 convolutions, as torchvision has it.

    Detectron2 hosts the weights of depth 50 and 101. Those of the other depths come from torchvision's files, for
    example `sparse-detr convert resnet18-f37072fd.pth resnet18_imagenet.pth`.

    Args:
        depth: a number in `RESNET_SIZES`.
        freeze_at: stages without gradient: 1 is the stem, 2 the stem and the first stage.
        num_maps: number of maps, the last of C2 to C5.
        dilation: stride 16 at C5 (DC5), for bottleneck blocks.

    Raises:
        ValueError: there is no such depth, or its blocks cannot be dilated.
    """
    if depth not in RESNET_SIZES:
        raise ValueError(f"no ResNet of depth {depth}; choose one of {', '.join(map(str, RESNET_SIZES))}")
    if dilation and not RESNET_SIZES[depth].bottleneck:
        raise ValueError(
            f"ResNet-{depth} has basic blocks, which cannot be dilated; give dilation=False, or depth 50, 101 or 152"
        )
    strides = (4, 8, 16, 16 if dilation else 32)
    maps = _last_maps(("res2", "res3", "res4", "res5"), RESNET_SIZES[depth].channels, strides, num_maps)
    config = L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(resnet_stages)(depth=depth, dilation=dilation),
        out_features=list(maps[0]),
        freeze_at=freeze_at,
    )
    hosted = depth in (50, 101)
    weights = f"detectron2://ImageNetPretrained/torchvision/R-{depth}.pkl" if hosted else f"resnet{depth}_imagenet.pth"
    return BackboneSpec(config, *maps, weights=weights)


def resnet_stages(*, depth: int, dilation: bool = False) -> list[Any]:
    """Return the stages with frozen batch norm; with `dilation`, the last stage is dilated and has no stride.

    As in torchvision, but not in Detectron2's `RES5_DILATION`, the first block of that stage is not dilated: the
    published DC5 weights were trained so.
    """
    size = RESNET_SIZES[depth]
    stages = []
    for i, count in enumerate(size.blocks):
        dilated = dilation and i == 3
        first_stride = 1 if i == 0 or dilated else 2
        bottleneck = {
            "dilation_per_block": [1] + [2 if dilated else 1] * (count - 1),
            "bottleneck_channels": 64 * 2**i,
            "stride_in_1x1": False,
        }
        stages.append(
            ResNet.make_stage(
                BottleneckBlock if size.bottleneck else BasicBlock,
                count,
                stride_per_block=[first_stride] + [1] * (count - 1),
                in_channels=64 if i == 0 else size.channels[i - 1],
                out_channels=size.channels[i],
                norm="FrozenBN",
                **(bottleneck if size.bottleneck else {}),
            )
        )
    return stages


class SwinSize(NamedTuple):
    """The options of a published Swin transformer; `drop_path_rate` is that of DINO's detectors."""

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    drop_path_rate: float
    pretraining: str


SWIN_SIZES = {
    "tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 0.1, "imagenet"),
    "small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 0.2, "imagenet"),
    "base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 0.2, "imagenet22k"),
    "large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 0.2, "imagenet22k"),
}
SWIN_PRETRAININGS = ("imagenet", "imagenet22k", "imagenet22kto1k")


def swin(
    size: str = "tiny",
    *,
    image_size: int = 224,
    num_maps: int = 3,
    freeze_at: int = 0,
    drop_path_rate: float | None = None,
    pretraining: str | None = None,
) -> BackboneSpec:
    """Return a Swin transformer with a norm for each map.

    Args:
        size: a name in `SWIN_SIZES`.
        image_size: 224 or 384, size of the ImageNet images that the weights were trained on; windows are a 32nd of it.
        num_maps: number of maps, the last of strides 4, 8, 16 and 32.
        freeze_at: which parts have no gradient: 0 none, 1 the patch embedding, 2 also the first stage.
        drop_path_rate: rate of the last block; None for that of the size.
        pretraining: a name in `SWIN_PRETRAININGS`, the classes that the weights were trained on: 1,000; 22,000; or
            22,000, then 1,000. None means "imagenet" for tiny and small, "imagenet22k" for base and large.

    Raises:
        ValueError: there are no weights of such a size, image size or pretraining.
    """
    if size not in SWIN_SIZES or image_size not in (224, 384):
        raise ValueError(
            f"no Swin {size!r} for images of {image_size}; sizes are {', '.join(SWIN_SIZES)}, images 224 or 384"
        )
    embed_dim, depths, num_heads, usual_rate, usual_pretraining = SWIN_SIZES[size]
    pretraining = usual_pretraining if pretraining is None else pretraining
    if pretraining not in SWIN_PRETRAININGS:
        raise ValueError(f"no Swin with pretraining {pretraining!r}; choose one of {', '.join(SWIN_PRETRAININGS)}")
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
        frozen_stages=freeze_at or -1,  # in Detectron2, 0 freezes the patch embedding, as 1 does
    )
    resolution = "" if image_size == 224 else f"_{image_size}"
    return BackboneSpec(config, *maps, weights=f"swin_{size}{resolution}_{pretraining}.pth")


def swin_tiny(*, freeze_at: int = 2) -> BackboneSpec:
    """Return Swin-T as in Sparse DETR, with frozen patch embedding and first stage."""
    return swin("tiny", freeze_at=freeze_at, drop_path_rate=0.2)


class DATSize(NamedTuple):
    """The options of a published DAT; `drop_path_rate` is that of its training on ImageNet."""

    embed_dim: int
    blocks: tuple[str, ...]
    num_groups: tuple[int, ...]
    drop_path_rate: float


DAT_SIZES = {
    "tiny": DATSize(96, ("LS", "LS", "LDLDLD", "LD"), (1, 1, 3, 6), 0.2),
    "small": DATSize(96, ("LS", "LS", "LD" * 9, "LD"), (1, 1, 3, 6), 0.3),
    "base": DATSize(128, ("LS", "LS", "LD" * 9, "LD"), (1, 1, 4, 8), 0.5),
}


def dat(
    size: str = "tiny",
    *,
    image_size: int = 224,
    num_maps: int = 3,
    freeze_at: int = 0,
    drop_path_rate: float | None = None,
    convention: Convention = "2022",
) -> BackboneSpec:
    """Return a DAT of the CVPR 2022 paper with a norm for each map.

    Args:
        size: a name in `DAT_SIZES`.
        image_size: 224, for base also 384, size of the ImageNet images that the weights were trained on; windows are a
            32nd of it.
        num_maps: number of maps, the last of strides 4, 8, 16 and 32.
        freeze_at: which parts have no gradient: 0 none, 1 the patch embedding, 2 also the first stage.
        drop_path_rate: rate of the last block; None for that of the size.
        convention: how positions are counted, "2022" or "2023"; see `DeformedKeyAttention`. Weights of 2022 need
            "2022".

    Raises:
        ValueError: there are no weights of such a size or image size, or there is no such convention.
    """
    if size not in DAT_SIZES or image_size not in (224, 384) or (image_size == 384 and size != "base"):
        raise ValueError(
            f"no DAT {size!r} for images of {image_size}; sizes are {', '.join(DAT_SIZES)}, images 224, or 384 for base"
        )
    convention = check_convention(convention)
    embed_dim, blocks, num_groups, usual_rate = DAT_SIZES[size]
    channels = tuple(embed_dim * 2**i for i in range(4))
    maps = _last_maps(("p0", "p1", "p2", "p3"), channels, (4, 8, 16, 32), num_maps)
    config = L(DAT)(
        embed_dim=embed_dim,
        blocks=list(blocks),
        num_heads=[width // 32 for width in channels],
        num_groups=list(num_groups),
        image_size=image_size,
        window_size=image_size // 32,
        convention=convention,
        drop_path_rate=usual_rate if drop_path_rate is None else drop_path_rate,
        out_indices=list(range(4 - num_maps, 4)),
        freeze_at=freeze_at,
    )
    resolution = "" if image_size == 224 else f"_{image_size}"
    return BackboneSpec(config, *maps, weights=f"dat_{size}{resolution}_imagenet.pth")


def mobilenet_v2(*, freeze_at: int = 2, strides: Sequence[int] = (8, 16, 32)) -> BackboneSpec:
    """Return MobileNetV2 with frozen batch norm.

    Args:
        freeze_at: see `MobileNetV2`; 2 freezes everything up to stride 4.
        strides: strides of its maps; one for models with full attention.
    """
    names = tuple(f"stride{stride}" for stride in strides)
    config = L(MobileNetV2)(out_features=list(names), freeze_at=freeze_at)
    return BackboneSpec(config, names, tuple(MobileNetV2.stages[name][1] for name in names), tuple(strides))


def timm(
    name: str,
    *,
    num_maps: int = 3,
    freeze_at: int = 2,
    frozen_norms: bool = True,
    checkpoint_path: str = "",
    **options: Any,
) -> BackboneSpec:
    """Return any model of timm that has a pyramid of maps; what its maps are is found out from the model.

    Args:
        name, num_maps, freeze_at, frozen_norms, checkpoint_path: see `TimmBackbone`.
        options: further arguments of `timm.create_model`: `drop_path_rate=0.1`, or `strict_img_size=False` for a Swin.

    Raises:
        ValueError: there is no such model, it has no such maps, or it takes images of one size only.
    """
    maps = timm_maps(name, options)
    names = [f"stride{stride}" for stride in maps.strides]
    config = L(TimmBackbone)(
        name=name,
        num_maps=num_maps,
        freeze_at=freeze_at,
        frozen_norms=frozen_norms,
        checkpoint_path=checkpoint_path,
        options=options,
    )
    usual = (maps.pixel_mean, maps.pixel_std) == (IMAGENET_MEAN, IMAGENET_STD)
    return BackboneSpec(
        config,
        *_last_maps(names, maps.channels, maps.strides, num_maps),
        pixel_mean=None if usual else maps.pixel_mean,
        pixel_std=None if usual else maps.pixel_std,
    )


def _last_maps(
    names: Sequence[str], channels: Sequence[int], strides: Sequence[int], count: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    if not 0 < count <= len(names):
        raise ValueError(f"num_maps must be 1 to {len(names)}, got {count}")
    return tuple(names[-count:]), tuple(channels[-count:]), tuple(strides[-count:])


@BACKBONE_REGISTRY.register()
def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """Build `swin` from yaml, with the arguments in `MODEL.SWIN` and `MODEL.BACKBONE.FREEZE_AT`."""
    options = {key.lower(): value for key, value in cfg.MODEL.SWIN.items() if value is not None}
    return instantiate(swin(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, **options).config)


@BACKBONE_REGISTRY.register()
def build_dat_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """Build `dat` from yaml, with the arguments in `MODEL.DAT` and `MODEL.BACKBONE.FREEZE_AT`."""
    options = {key.lower(): value for key, value in cfg.MODEL.DAT.items() if value is not None}
    return instantiate(dat(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, **options).config)


@BACKBONE_REGISTRY.register()
def build_resnet_dc5_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """Build a ResNet from yaml with C5 alone, dilated to stride 16 as in torchvision; see `resnet_stages`."""
    depth, freeze_at = cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.BACKBONE.FREEZE_AT
    return instantiate(resnet(depth, freeze_at=freeze_at, num_maps=1, dilation=True).config)


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """Build `timm` from yaml, with the arguments in `MODEL.TIMM` and `MODEL.BACKBONE.FREEZE_AT`."""
    options = {key.lower(): value for key, value in cfg.MODEL.TIMM.items() if value is not None}
    if "name" not in options:
        raise UserError("MODEL.TIMM.NAME is not set; give the name of a model of timm, such as convnext_tiny")
    backbone = timm(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT, **options)
    mean, std = backbone.pixel_mean or IMAGENET_MEAN, backbone.pixel_std or IMAGENET_STD
    if (tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD)) != (mean, std):
        logger.warning(
            f"{options['name']} was trained on images with MODEL.PIXEL_MEAN {list(mean)} MODEL.PIXEL_STD {list(std)}; "
            "the config has others"
        )
    return instantiate(backbone.config)
