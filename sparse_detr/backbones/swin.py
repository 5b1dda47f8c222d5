"""Detectron2's Swin transformer, which here also runs in half precision."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import SwinTransformer as D2SwinTransformer
from detectron2.modeling.backbone.swin import WindowAttention


class SwinTransformer(D2SwinTransformer):
    """Detectron2's Swin transformer with masks in the dtype of the weights; Detectron2's are always float32.

    Args:
        options: arguments of Detectron2's class.
    """

    def __init__(self, **options: Any):
        super().__init__(**options)
        for module in self.modules():
            if isinstance(module, WindowAttention):
                module.register_forward_pre_hook(_cast_mask, with_kwargs=True)


def _cast_mask(attention: WindowAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    mask = kwargs.get("mask")
    return args, kwargs if mask is None else {**kwargs, "mask": mask.to(attention.qkv.weight.dtype)}
