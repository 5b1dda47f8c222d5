"""A backbone as a lazy config, with the names, channels and strides of its maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.modeling.backbone import Backbone as D2Backbone


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


def last_maps(
    names: Sequence[str], channels: Sequence[int], strides: Sequence[int], count: int
) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the names, channels and strides of the last `count` maps.

    Raises:
        ValueError: there are not so many maps.
    """
    if not 0 < count <= len(names):
        raise ValueError(f"num_maps must be 1 to {len(names)}, got {count}")
    return tuple(names[-count:]), tuple(channels[-count:]), tuple(strides[-count:])
