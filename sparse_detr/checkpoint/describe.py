"""What model a converted checkpoint needs, read off its entries."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparse_detr.checkpoint.classes import count_classes
from sparse_detr.checkpoint.name_maps import count_indices

# (width of the stem or patch embedding, blocks of the third stage) of each body
RESNETS = {6: "resnet50", 23: "resnet101"}
SWINS = {(96, 6): "swin_tiny", (96, 18): "swin_small", (128, 18): "swin_base", (192, 18): "swin_large"}


@dataclass(frozen=True)
class Description:
    """The recipe that a file belongs to and the arguments that differ from file to file.

    Args:
        recipe: function of `sparse_detr.recipes`; None for a file of backbone weights.
        backbone: function of `sparse_detr.recipes.backbones`, or None if it is none of the known ones.
        arguments: keyword arguments of the recipe.
        remarks: what the entries cannot tell.
    """

    recipe: str | None
    backbone: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"recipe:    {self.recipe or 'none, these are backbone weights'}",
            f"backbone:  {self.backbone or 'unknown'}",
        ]
        if self.arguments:
            lines.append("arguments: " + ", ".join(f"{name}={value!r}" for name, value in self.arguments.items()))
        return "\n".join([*lines, *(f"note:      {remark}" for remark in self.remarks)])


def describe(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any] | None = None) -> Description:
    """Derive the recipe and its arguments from entries under our names.

    Args:
        state_dict: a converted file.
        trained_with: the command-line arguments that public code saves in its files, where there are any.
    """
    trained_with = trained_with or {}
    backbone = _backbone(state_dict)
    if "tokenizer.level_embed" not in state_dict:
        return Description(recipe=None, backbone=backbone)
    return Description(
        recipe=_recipe(state_dict, has_binary_proposals(state_dict, trained_with)),
        backbone=backbone,
        arguments=_arguments(state_dict, trained_with),
        remarks=_remarks(state_dict, trained_with),
    )


def _has(state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state_dict)


def _backbone(state_dict: Mapping[str, Tensor]) -> str | None:
    if (patches := state_dict.get("backbone.patch_embed.proj.weight")) is not None:
        return SWINS.get((len(patches), count_indices(state_dict, r"backbone\.layers\.2\.blocks\.(\d+)\.")))
    return RESNETS.get(count_indices(state_dict, r"backbone\.res4\.(\d+)\."))


def _uses_memory_as_content(state_dict: Mapping[str, Tensor]) -> bool:
    """The position projection then gives the position only, C numbers instead of 2C."""
    embed_dim = state_dict["tokenizer.level_embed"].shape[1]
    projection = state_dict.get("queries.position_projection.linear.weight")
    return projection is not None and len(projection) == embed_dim


def has_binary_proposals(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any]) -> bool:
    """Whether row 0 of the proposal head says "foreground" rather than standing for a class.

    As the saved arguments say, else by the company it keeps: every public file has both efficient options or neither.
    """
    if not _has(state_dict, "proposal_head."):
        return False
    return not trained_with.get("eff_specific_head", _uses_memory_as_content(state_dict))


def _recipe(state_dict: Mapping[str, Tensor], binary_proposals: bool) -> str:
    if _has(state_dict, "selector.scorer."):
        return "sparse_detr"
    two_stage = _has(state_dict, "proposal_head.")
    return "efficient_detr" if two_stage and not binary_proposals else "deformable_detr"


def _arguments(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any]) -> dict[str, Any]:
    two_stage = _has(state_dict, "proposal_head.")
    queries = state_dict.get("queries.embedding.weight")
    arguments = {
        "num_classes": count_classes(state_dict),
        "num_queries": trained_with.get("num_queries") if queries is None else len(queries),
        "num_levels": len(state_dict["tokenizer.level_embed"]),
        "encoder_layers": count_indices(state_dict, r"encoder\.layers\.(\d+)\."),
        "decoder_layers": count_indices(state_dict, r"decoder\.layers\.(\d+)\."),
        "two_stage": two_stage,
        "box_refinement": two_stage or not _decoder_heads_are_tied(state_dict),
        "encoder_auxiliary_loss": _has(state_dict, "encoder_heads."),
        "keep_ratio": trained_with.get("rho") or None,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _decoder_heads_are_tied(state_dict: Mapping[str, Tensor]) -> bool:
    first, *others = (
        value for name, value in state_dict.items() if re.fullmatch(r"decoder_heads\.\d+\.class_embed\.weight", name)
    )
    return all(torch.equal(first, other) for other in others)


def _remarks(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any]) -> tuple[str, ...]:
    remarks = ['use behavior="released": public weights were trained with it.']
    two_stage = _has(state_dict, "proposal_head.")
    if two_stage and "num_queries" not in trained_with:
        remarks.append("a two-stage file does not tell its number of queries; the papers' models have 300.")
    if _has(state_dict, "selector.scorer.") and "rho" not in trained_with:
        remarks.append("the keep ratio is not in the weights; see the file's name (rho).")
    if not two_stage and not _decoder_heads_are_tied(state_dict):
        remarks.append(
            "untied heads of a one-stage model: files of the Sparse DETR repository never refined boxes then."
        )
    return tuple(remarks)
