"""The recipes as Detectron2 meta-architectures, for yaml configs.

A key `MODEL.DETR.X` is the argument `x` of the recipe; None means the default of the recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from torch import nn

from sparse_detr.errors import UserError
from sparse_detr.recipes.anchor_detr import anchor_detr
from sparse_detr.recipes.backbones import BackboneSpec, from_module
from sparse_detr.recipes.conditional_detr import conditional_detr
from sparse_detr.recipes.dab_detr import dab_deformable_detr, dab_detr, sparse_dab_deformable_detr
from sparse_detr.recipes.deformable_detr import deformable_detr
from sparse_detr.recipes.detr import detr
from sparse_detr.recipes.dino import dino
from sparse_detr.recipes.efficient_detr import efficient_detr
from sparse_detr.recipes.elastic import elastic
from sparse_detr.recipes.focus_detr import focus, focus_deformable_detr, focus_detr
from sparse_detr.recipes.full_attention import full_attention_detr
from sparse_detr.recipes.imfa import imfa_dab_detr
from sparse_detr.recipes.lite_detr import lite, lite_deformable_detr, lite_dino
from sparse_detr.recipes.pnp_detr import pnp_detr
from sparse_detr.recipes.sparse_detr import sparse_detr, sparse_dino


@dataclass(frozen=True)
class Recipe:
    """The recipe of a meta-architecture.

    Args:
        functions: the recipe, then the functions to which it passes options.
        fixed: options of these functions that the recipe sets itself.
    """

    functions: tuple[Callable[..., Any], ...]
    fixed: frozenset[str] = frozenset()


_REFINED = frozenset({"box_refinement"})
_TWO_STAGE = _REFINED | {"two_stage"}

RECIPES: dict[str, Recipe] = {
    "DETR": Recipe((detr, full_attention_detr)),
    "ConditionalDETR": Recipe((conditional_detr, full_attention_detr)),
    "DeformableDETR": Recipe((deformable_detr,)),
    "SparseDETR": Recipe((sparse_detr, elastic, deformable_detr)),
    "EfficientDETR": Recipe((efficient_detr, deformable_detr), fixed=_TWO_STAGE),
    "DINO": Recipe((dino, deformable_detr), fixed=_TWO_STAGE),
    "SparseDINO": Recipe((sparse_dino, sparse_detr, elastic, dino, deformable_detr), fixed=_TWO_STAGE),
    "AnchorDETR": Recipe((anchor_detr,)),
    "DABDETR": Recipe((dab_detr, full_attention_detr)),
    "DABDeformableDETR": Recipe((dab_deformable_detr, deformable_detr), fixed=_REFINED),
    "SparseDABDeformableDETR": Recipe(
        (sparse_dab_deformable_detr, sparse_detr, elastic, dab_deformable_detr, deformable_detr), fixed=_REFINED
    ),
    "IMFADABDETR": Recipe((imfa_dab_detr, dab_detr, full_attention_detr), fixed=frozenset({"encoder_layers"})),
    "FocusDETR": Recipe((focus_detr, focus, elastic, dino, deformable_detr), fixed=_TWO_STAGE),
    "FocusDeformableDETR": Recipe((focus_deformable_detr, focus, elastic, deformable_detr)),
    "LiteDINO": Recipe((lite_dino, lite, dino, deformable_detr), fixed=_TWO_STAGE),
    "LiteDeformableDETR": Recipe((lite_deformable_detr, lite, deformable_detr)),
    "PnPDETR": Recipe((pnp_detr, detr, full_attention_detr)),
}
"""By name of the meta-architecture."""


def recipe_options(name: str) -> list[str]:
    """Return the names of the options that a meta-architecture takes from `MODEL.DETR`, in lower case."""
    options: dict[str, None] = {}
    for function in RECIPES[name].functions:
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in ("backbone", "base"):
                options[parameter.name] = None
    return [option for option in options if option not in RECIPES[name].fixed]


def recipe_config(name: str, cfg: CfgNode, backbone: BackboneSpec) -> Any:
    """Return the lazy config of a meta-architecture, without building it.

    Raises:
        UserError: a key of `MODEL.DETR` is set that the recipe does not have.
    """
    given = {key.lower(): value for key, value in cfg.MODEL.DETR.items() if value is not None}
    unknown = sorted(set(given) - set(recipe_options(name)))
    if unknown:
        keys = ", ".join(f"MODEL.DETR.{key.upper()}" for key in unknown)
        raise UserError(f"{name} has no option {keys}; remove it or choose another MODEL.META_ARCHITECTURE")
    derived = _falling_steps(name, cfg) | _detections(name, cfg)
    model = RECIPES[name].functions[0](backbone=backbone, **given, **derived)
    if cfg.TEST.SUPPRESS_DUPLICATES is not None:
        model.postprocess.suppress_duplicates = cfg.TEST.SUPPRESS_DUPLICATES
    return model


def _falling_steps(name: str, cfg: CfgNode) -> dict[str, int]:
    """Return the length of the training for a recipe whose number of queries falls, unless our key says another."""
    falls = "falling_steps" in recipe_options(name) and cfg.MODEL.DETR.FALLING_STEPS is None
    return {"falling_steps": cfg.SOLVER.MAX_ITER} if falls else {}


def _detections(name: str, cfg: CfgNode) -> dict[str, int]:
    """Return the number of detections if Detectron2's key sets it; refuse a different one in our key."""
    detections, own = cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.DETR.NUM_DETECTIONS
    if detections is None or own == detections:
        return {}
    if "num_detections" not in recipe_options(name):
        raise UserError(
            f"TEST.DETECTIONS_PER_IMAGE is {detections}, but {name} gives one detection for each query; remove the key"
        )
    if own is not None:
        raise UserError(
            f"TEST.DETECTIONS_PER_IMAGE is {detections} and MODEL.DETR.NUM_DETECTIONS is {own}; set one of them"
        )
    return {"num_detections": detections}


def build_from_cfg(name: str, cfg: CfgNode) -> nn.Module:
    """Build a meta-architecture from yaml: Detectron2's backbone keys and `MODEL.DETR`.

    Raises:
        UserError: a key of `MODEL.DETR` is set that the recipe does not have, or has a wrong value.
    """
    model = recipe_config(name, cfg, from_module(build_backbone(cfg)))
    model.pixel_mean, model.pixel_std = list(cfg.MODEL.PIXEL_MEAN), list(cfg.MODEL.PIXEL_STD)
    return instantiate(model)


def _meta_architecture(name: str) -> Callable[[CfgNode], nn.Module]:
    def build(cfg: CfgNode) -> nn.Module:
        return build_from_cfg(name, cfg)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"Build {name} from yaml."
    return build


for _name in RECIPES:
    META_ARCH_REGISTRY.register(_meta_architecture(_name))
