"""Backbones that Detectron2 does not have."""

# ruff: noqa: E402 - the check must come before what it checks for
from sparse_detr._detectron2 import require_detectron2

require_detectron2()

from sparse_detr.backbones.dat import DAT
from sparse_detr.backbones.mobilenet import MobileNetV2
from sparse_detr.backbones.swin import SwinTransformer
from sparse_detr.backbones.timm import TimmBackbone, timm_maps

__all__ = ["DAT", "MobileNetV2", "SwinTransformer", "TimmBackbone", "timm_maps"]
