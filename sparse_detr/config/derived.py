"""Derive settings from others: the output folder from the config's name, the weights from the backbone."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode


def output_dir_of(path: str) -> str:
    """Return the output folder of the config file at `path`: `output/` and the file's name without its ending."""
    return f"output/{Path(path).stem}"


def derive_yacs(cfg: CfgNode, path: str, overrides: Sequence[str]) -> None:
    """Set, in place, the output folder and the weights where neither the file at `path` nor the overrides set them.

    `OUTPUT_DIR` becomes `output_dir_of(path)`. `MODEL.WEIGHTS` becomes the ImageNet weights of the backbone where it
    still holds those of ResNet-50 from `configs/Base-DETR.yaml`. A lazy config sets both itself (`training` in
    `configs/common/coco.py`), so that Detectron2's own tools can use it.
    """
    from sparse_detr.recipes import RECIPES, resnet

    given = set(overrides[::2])
    if "OUTPUT_DIR" not in given and "OUTPUT_DIR" not in CfgNode.load_yaml_with_base(path, allow_unsafe=True):
        cfg.OUTPUT_DIR = output_dir_of(path)
    weights = cfg.MODEL.WEIGHTS
    if "MODEL.WEIGHTS" not in given and weights == resnet(50).weights and cfg.MODEL.META_ARCHITECTURE in RECIPES:
        from_timm = cfg.MODEL.BACKBONE.NAME == "build_timm_backbone"  # which reads MODEL.TIMM.CHECKPOINT_PATH itself
        cfg.MODEL.WEIGHTS = "" if from_timm else _imagenet_weights(cfg) or weights


def _imagenet_weights(cfg: CfgNode) -> str:
    """Return the name of the ImageNet weights of the config's backbone; "" where none are known."""
    from sparse_detr.recipes import dat, resnet, swin, swin_tiny
    from sparse_detr.recipes.backbones import RESNET_SIZES

    name, depth = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.DEPTH
    if name in ("build_resnet_backbone", "build_resnet_dc5_backbone") and depth in RESNET_SIZES:
        return resnet(depth).weights
    if name == "build_swin_backbone":
        return swin(**{key.lower(): value for key, value in cfg.MODEL.SWIN.items() if value is not None}).weights
    if name == "build_dat_backbone":
        return dat(**{key.lower(): value for key, value in cfg.MODEL.DAT.items() if value is not None}).weights
    return swin_tiny().weights if name == "build_swin_tiny_backbone" else ""
