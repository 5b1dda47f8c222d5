"""Backbones for yaml configs, by `MODEL.BACKBONE.NAME`."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone as D2Backbone

from sparse_detr.errors import UserError
from sparse_detr.recipes.backbones.dat import dat
from sparse_detr.recipes.backbones.mobilenet import mobilenet_v2
from sparse_detr.recipes.backbones.resnet import resnet
from sparse_detr.recipes.backbones.swin import swin, swin_tiny
from sparse_detr.recipes.backbones.timm import IMAGENET_MEAN, IMAGENET_STD, timm

logger = logging.getLogger(__name__)


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


@BACKBONE_REGISTRY.register()
def build_swin_tiny_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """Build Swin-T from yaml, frozen up to `MODEL.BACKBONE.FREEZE_AT`."""
    return instantiate(swin_tiny(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT).config)


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> D2Backbone:
    """Build MobileNetV2 from yaml, frozen up to `MODEL.BACKBONE.FREEZE_AT`."""
    return instantiate(mobilenet_v2(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT).config)
