"""MobileNetV2 (Sandler et al., CVPR 2018), for small machines."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import LazyCall as L

from sparse_detr.backbones import MobileNetV2
from sparse_detr.recipes.backbones.spec import BackboneSpec


def mobilenet_v2(*, freeze_at: int = 2, strides: Sequence[int] = (8, 16, 32)) -> BackboneSpec:
    """Return MobileNetV2 with frozen batch norm.

    Args:
        freeze_at: see `MobileNetV2`; 2 freezes everything up to stride 4.
        strides: strides of its maps; one for models with full attention.

    Raises:
        ValueError: it has no map of such a stride.
    """
    names = tuple(f"stride{stride}" for stride in strides)
    if unknown := set(names) - set(MobileNetV2.stages):
        raise ValueError(f"MobileNetV2 has no {', '.join(sorted(unknown))}; choose of {', '.join(MobileNetV2.stages)}")
    config = L(MobileNetV2)(out_features=list(names), freeze_at=freeze_at)
    return BackboneSpec(config, names, tuple(MobileNetV2.stages[name][1] for name in names), tuple(strides))
