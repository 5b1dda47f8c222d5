"""ResNet with frozen batch norm (He et al., CVPR 2016), dilated too."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import LazyCall as L
from detectron2.modeling import ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock

from sparse_detr.recipes.backbones.spec import BackboneSpec, last_maps


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
    maps = last_maps(("res2", "res3", "res4", "res5"), RESNET_SIZES[depth].channels, strides, num_maps)
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
