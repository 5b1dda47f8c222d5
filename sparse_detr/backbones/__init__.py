"""Backbones that Detectron2 lacks."""

from sparse_detr.backbones.mobilenet import MobileNetV2

__all__ = ["MobileNetV2"]
