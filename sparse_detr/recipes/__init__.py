"""Recipes: which parts make the model of a paper, one file for each paper.

`shared.py` has the detector around these parts, `full_attention.py` what the models with full attention share.
"""

# ruff: noqa: E402 - the check must come before what it checks for
from sparse_detr._detectron2 import require_detectron2

require_detectron2()

from sparse_detr.recipes.anchor_detr import anchor_detr
from sparse_detr.recipes.backbones import BackboneSpec, dat, from_module, mobilenet_v2, resnet, swin, swin_tiny, timm
from sparse_detr.recipes.conditional_detr import conditional_detr
from sparse_detr.recipes.dab_detr import dab_deformable_detr, dab_detr, sparse_dab_deformable_detr
from sparse_detr.recipes.deformable_detr import deformable_detr, deformable_detr_topk
from sparse_detr.recipes.detr import detr
from sparse_detr.recipes.dino import dino
from sparse_detr.recipes.efficient_detr import efficient_detr
from sparse_detr.recipes.elastic import elastic
from sparse_detr.recipes.focus_detr import focus, focus_deformable_detr, focus_detr
from sparse_detr.recipes.imfa import imfa_dab_detr
from sparse_detr.recipes.lite_detr import lite, lite_deformable_detr, lite_dino
from sparse_detr.recipes.meta_arch import RECIPES
from sparse_detr.recipes.pnp_detr import pnp_detr
from sparse_detr.recipes.sparse_detr import sparse_detr, sparse_dino

__all__ = [
    "RECIPES",
    "BackboneSpec",
    "anchor_detr",
    "conditional_detr",
    "dab_deformable_detr",
    "dab_detr",
    "dat",
    "deformable_detr",
    "deformable_detr_topk",
    "detr",
    "dino",
    "efficient_detr",
    "elastic",
    "focus",
    "focus_deformable_detr",
    "focus_detr",
    "from_module",
    "imfa_dab_detr",
    "lite",
    "lite_deformable_detr",
    "lite_dino",
    "mobilenet_v2",
    "pnp_detr",
    "resnet",
    "sparse_dab_deformable_detr",
    "sparse_detr",
    "sparse_dino",
    "swin",
    "swin_tiny",
    "timm",
]
