"""Backbones as lazy configs, with the names, channels and strides of their maps: one file for each family."""

from sparse_detr.recipes.backbones import registry
from sparse_detr.recipes.backbones.dat import DAT_SIZES, DATSize, dat
from sparse_detr.recipes.backbones.mobilenet import mobilenet_v2
from sparse_detr.recipes.backbones.resnet import RESNET_SIZES, ResNetSize, resnet, resnet_stages
from sparse_detr.recipes.backbones.spec import BackboneSpec, from_module
from sparse_detr.recipes.backbones.swin import SWIN_PRETRAININGS, SWIN_SIZES, SwinSize, swin, swin_tiny
from sparse_detr.recipes.backbones.timm import timm

__all__ = [
    "DAT_SIZES",
    "RESNET_SIZES",
    "SWIN_PRETRAININGS",
    "SWIN_SIZES",
    "BackboneSpec",
    "DATSize",
    "ResNetSize",
    "SwinSize",
    "dat",
    "from_module",
    "mobilenet_v2",
    "registry",
    "resnet",
    "resnet_stages",
    "swin",
    "swin_tiny",
    "timm",
]
