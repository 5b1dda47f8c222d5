"""The kinds of public files that can be converted.

A new paper adds a `Layout`; most of its rows can come from the existing tables.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sparse_detr.checkpoint import detrex_names, mmdet_names, official_names, transformers_names
from sparse_detr.checkpoint.name_maps import DAT, NUMBERED_RESNET, RESNET, SWIN, Table, prefixed

Origin = Literal["official", "detrex", "transformers", "mmdetection", "backbone"]


@dataclass(frozen=True)
class Layout:
    """One way in which public code names its entries.

    Args:
        name: its name for `--source`.
        origin: whose code wrote the file: the papers' authors', detrex's, that of `transformers` or MMDetection, or
            that of an ImageNet backbone.
        marks: patterns that identify the layout; each must be found in some name.
        tables: returns, for the names in a file, the tables that rename them, to be applied in this order.
        no_object: the last row of a class head means "no object".
    """

    name: str
    origin: Origin
    marks: tuple[str, ...]
    tables: Callable[[Sequence[str]], tuple[Table, ...]]
    no_object: bool = False

    def recognises(self, names: Iterable[str]) -> bool:
        """Return whether every mark is found in some name."""
        names = list(names)
        return all(any(re.search(mark, name) for name in names) for mark in self.marks)


def _official(name: str, table: Callable[[Sequence[str]], Table], *marks: str, no_object: bool = False) -> Layout:
    return Layout(name, "official", marks, lambda names: (table(names),), no_object)


def _detrex(name: str, table: Callable[[Sequence[str]], Table], *marks: str, no_object: bool = False) -> Layout:
    return Layout(f"detrex_{name}", "detrex", marks, lambda names: (table(names),), no_object)


def _transformers(name: str, table: Callable[[Sequence[str]], Table], *marks: str, no_object: bool = False) -> Layout:
    return Layout(f"transformers_{name}", "transformers", marks, lambda names: (table(names),), no_object)


def _mmdet(name: str, table: Callable[[Sequence[str]], Table], *marks: str, no_object: bool = False) -> Layout:
    return Layout(f"mmdet_{name}", "mmdetection", marks, lambda names: (table(names),), no_object)


def _backbone(name: str, tables: tuple[Table, ...], *marks: str) -> Layout:
    *first, last = tables
    renamed = (*first, prefixed(last, source="", target="backbone."))
    return Layout(name, "backbone", marks, lambda names: renamed)


_DEFORMABLE = (r"^transformer\.level_embed$", r"^input_proj\.0\.0\.", r"^class_embed\.0\.")
_BOX_QUERIES = r"^transformer\.decoder\.ref_point_head\."
_PATTERNS = r"^transformer\.pattern\.weight$"
_SAMPLER = r"^transformer\.sampler\.k_proj\."
_LEARNED_POSITIONS = r"^query_embed\.weight$"
_KEY_QUERIES = r"^transformer\.encoder\.layers\.\d+\.self_attn\.query_proj\."
_SCALED_QUERIES = r"^transformer\.decoder\.query_scale\."

_BRANCHES, _ONE_HEAD = r"^bbox_head\.cls_branches\.0\.", r"^bbox_head\.fc_cls\."  # of MMDetection

# in the order in which `auto` tries them
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        _official("dab_deformable_detr", official_names.dab_deformable_table, *_DEFORMABLE, _SCALED_QUERIES),
        _official("lite_dino", official_names.lite_dino_table, *_DEFORMABLE, _KEY_QUERIES),
        _official("dino", official_names.dino_table, *_DEFORMABLE, _BOX_QUERIES),
        _official("sparse_detr", official_names.sparse_table, *_DEFORMABLE, r"^transformer\.enc_mask_predictor\."),
        _official("deformable_detr", official_names.sparse_table, *_DEFORMABLE),
        _official("dab_detr", official_names.dab_table, r"^refpoint_embed\.weight$", r"^input_proj\.weight$"),
        _official("anchor_detr", official_names.anchor_table, _PATTERNS, r"^input_proj\.0\.0\."),
        _official("pnp_detr", official_names.pnp_table, _SAMPLER, r"\.multihead_attn\.", no_object=True),
        _official(
            "detr", official_names.detr_table, r"^transformer\.decoder\.layers\.0\.multihead_attn\.", no_object=True
        ),
        _official(
            "conditional_detr",
            official_names.conditional_table,
            r"^transformer\.decoder\.layers\.0\.sa_qcontent_proj\.",
            _LEARNED_POSITIONS,
        ),
        Layout(
            "imfa_dab_detr", "official", (r"^projs\.0\.", r"^transformer\.sampling_pt\."), official_names.imfa_tables
        ),
        _detrex("focus_detr", detrex_names.deformable_table, r"^transformer\.level_embeds$", r"^transformer\.alpha$"),
        _detrex("dab_deformable_detr", detrex_names.deformable_table, r"^transformer\.level_embeds$", _SCALED_QUERIES),
        _detrex("dino", detrex_names.deformable_table, r"^transformer\.level_embeds$", r"^transformer\.tgt_embed\."),
        _detrex("dab_detr", detrex_names.dab_table, r"^anchor_box_embed\.weight$", r"^input_proj\.weight$"),
        _detrex("anchor_detr", official_names.anchor_table, _PATTERNS, r"^input_proj\.0\.weight$"),
        _detrex("pnp_detr", detrex_names.pnp_table, _SAMPLER, r"\.attentions\.1\.attn\.", no_object=True),
        _detrex(
            "detr",
            detrex_names.detr_table,
            r"^transformer\.decoder\.layers\.0\.attentions\.1\.attn\.",
            _LEARNED_POSITIONS,
            no_object=True,
        ),
        _detrex("conditional_detr", detrex_names.conditional_table, _LEARNED_POSITIONS, _BOX_QUERIES),
        _transformers(
            "deformable_detr",
            transformers_names.deformable_table,
            r"^(?:model\.)?level_embed$",
            r"^(?:model\.)?decoder\.layers\.0\.encoder_attn\.sampling_offsets\.",
        ),
        _transformers(
            "conditional_detr",
            transformers_names.conditional_table,
            r"^(?:model\.)?decoder\.ref_point_head\.",
            r"^class_labels_classifier\.",
        ),
        _transformers(
            "detr",
            transformers_names.detr_table,
            r"^(?:model\.)?decoder\.layers\.0\.encoder_attn\.q_proj\.",
            r"^class_labels_classifier\.",
            no_object=True,
        ),
        _mmdet("dino", mmdet_names.dino_table, _BRANCHES, r"^decoder\.ref_point_head\.", r"^memory_trans_fc\."),
        _mmdet("deformable_detr", mmdet_names.deformable_table, _BRANCHES, r"^level_embed$"),
        _mmdet(
            "conditional_detr",
            mmdet_names.conditional_table,
            _ONE_HEAD,
            r"^decoder\.ref_point_head\.",
            r"^query_embedding\.",
        ),
        _mmdet("detr", mmdet_names.detr_table, _ONE_HEAD, r"^decoder\.layers\.0\.cross_attn\.attn\.", no_object=True),
        _backbone("torchvision_resnet", (RESNET,), r"^conv1\.weight$", r"^layer1\.0\.conv1\.weight$"),
        _backbone("swin", (SWIN,), r"^patch_embed\.proj\.weight$", r"^layers\.0\.blocks\.0\.attn\."),
        _backbone(
            "dat",
            (DAT,),
            r"^(backbone\.)?patch_proj\.0\.weight$",
            r"^(backbone\.)?stages\.\d\.attns\.\d+\.proj_qkv\.",
        ),
        _backbone(
            "scrl",
            (NUMBERED_RESNET, RESNET),
            r"(^|\.)encoder\.0\.weight$",
            r"(^|\.)encoder\.4\.0\.conv1\.weight$",
        ),
    )
}
