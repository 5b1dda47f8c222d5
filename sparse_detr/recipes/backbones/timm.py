"""Any model of timm with a pyramid of maps."""

from __future__ import annotations

from typing import Any

from detectron2.config import LazyCall as L

from sparse_detr.backbones import TimmBackbone, timm_maps
from sparse_detr.recipes.backbones.spec import BackboneSpec, last_maps

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.280, 103.530), (58.395, 57.120, 57.375)


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
        *last_maps(names, maps.channels, maps.strides, num_maps),
        pixel_mean=None if usual else maps.pixel_mean,
        pixel_std=None if usual else maps.pixel_std,
    )
