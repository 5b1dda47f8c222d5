"""What model a converted checkpoint needs, read off its entries."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparse_detr.checkpoint.classes import count_classes
from sparse_detr.checkpoint.name_maps import count_indices

# blocks of the third stage of a ResNet; width of the patch embedding and blocks of the third stage of a Swin
RESNETS = {6: 50, 23: 101}
SWINS = {(96, 6): "swin_tiny()"}


@dataclass(frozen=True)
class Description:
    """The recipe that a file belongs to and the arguments that differ from file to file.

    Args:
        recipe: function of `sparse_detr.recipes`; None for a file of backbone weights.
        backbone: call of a function of `sparse_detr.recipes`, or None if it is none of those.
        arguments: keyword arguments of the recipe.
        overrides: changes of the recipe's result, by dotted key.
        remarks: what the entries cannot tell.
    """

    recipe: str | None
    backbone: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"recipe:    {self.recipe or 'none, these are backbone weights'}",
            f"backbone:  {self.backbone or 'unknown'}",
        ]
        if self.arguments:
            lines.append("arguments: " + ", ".join(f"{name}={value!r}" for name, value in self.arguments.items()))
        lines += [f"override:  model.{key}={value}" for key, value in self.overrides.items()]
        return "\n".join([*lines, *(f"note:      {remark}" for remark in self.remarks)])


def describe(
    state_dict: Mapping[str, Tensor], *, public_names: Collection[str], trained_with: Mapping[str, Any]
) -> Description:
    """Derive the recipe and its arguments.

    Args:
        state_dict: entries under our names.
        public_names: all names of the file.
        trained_with: the command-line arguments that public code saves in its files, where there are any.
    """
    backbone = _backbone(state_dict)
    if "tokenizer.level_embed" not in state_dict:
        return Description(recipe=None, backbone=backbone)
    arguments = _arguments(state_dict, trained_with)
    never_refined = arguments["box_refinement"] and not any("decoder.bbox_embed" in name for name in public_names)
    return Description(
        recipe=_recipe(state_dict),
        backbone=backbone,
        arguments=arguments,
        overrides=_overrides(state_dict, trained_with, never_refined),
        remarks=tuple(_remarks(state_dict, trained_with, never_refined)),
    )


def _has(state_dict: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in state_dict)


def _backbone(state_dict: Mapping[str, Tensor]) -> str | None:
    if (patches := state_dict.get("backbone.patch_embed.proj.weight")) is not None:
        return SWINS.get((len(patches), count_indices(state_dict, r"backbone\.layers\.2\.blocks\.(\d+)\.")))
    depth = RESNETS.get(count_indices(state_dict, r"backbone\.res4\.(\d+)\."))
    single_scale = len(state_dict.get("tokenizer.level_embed", ())) == 1
    return None if depth is None else f"resnet({depth}, single_scale=True)" if single_scale else f"resnet({depth})"


def _two_stage(state_dict: Mapping[str, Tensor]) -> str:
    """Where queries come from; a position projection of C numbers, not 2C, leaves the content to the memory."""
    projection = state_dict.get("queries.position_projection.linear.weight")
    if projection is None:
        return "off"
    return "memory" if len(projection) == state_dict["tokenizer.level_embed"].shape[1] else "projected"


def has_binary_proposals(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any]) -> bool:
    """Whether row 0 of the proposal head says "foreground" rather than standing for a class.

    As the saved arguments say, else by the company it keeps: every public file has both efficient options or neither.
    """
    if not _has(state_dict, "proposal_head."):
        return False
    return not trained_with.get("eff_specific_head", _two_stage(state_dict) == "memory")


def _recipe(state_dict: Mapping[str, Tensor]) -> str:
    if _has(state_dict, "selector.scorer."):
        return "sparse_detr"
    return "efficient_detr" if _two_stage(state_dict) == "memory" else "deformable_detr"


def _arguments(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any]) -> dict[str, Any]:
    two_stage = _two_stage(state_dict)
    queries = state_dict.get("queries.embedding.weight")
    arguments = {
        "num_classes": count_classes(state_dict),
        "num_queries": trained_with.get("num_queries") if queries is None else len(queries),
        "num_levels": len(state_dict["tokenizer.level_embed"]),
        "encoder_layers": count_indices(state_dict, r"encoder\.layers\.(\d+)\."),
        "decoder_layers": count_indices(state_dict, r"decoder\.layers\.(\d+)\."),
        "two_stage": two_stage,
        "box_refinement": two_stage != "off" or not _decoder_heads_are_tied(state_dict),
        "encoder_auxiliary_loss": _has(state_dict, "encoder_heads."),
        "keep_ratio": trained_with.get("rho") or None,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _overrides(
    state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any], never_refined: bool
) -> dict[str, Any]:
    overrides = {"decoder.refine": False} if never_refined else {}
    binary, two_stage = has_binary_proposals(state_dict, trained_with), _two_stage(state_dict)
    if two_stage != "off" and binary != (two_stage == "projected"):
        overrides["queries.class_agnostic"] = binary
    return overrides


def _decoder_heads_are_tied(state_dict: Mapping[str, Tensor]) -> bool:
    first, *others = (
        value for name, value in state_dict.items() if re.fullmatch(r"decoder_heads\.\d+\.class_embed\.weight", name)
    )
    return all(torch.equal(first, other) for other in others)


def _remarks(state_dict: Mapping[str, Tensor], trained_with: Mapping[str, Any], never_refined: bool) -> Iterator[str]:
    yield 'use behavior="released": public weights were trained with it.'
    if count_classes(state_dict) == 91:
        yield "its classes are COCO's category ids: give class_channels=sparse_detr.checkpoint.COCO_IDS as well."
    if _two_stage(state_dict) != "off" and "num_queries" not in trained_with:
        yield "a two-stage file does not tell its number of queries; the papers' models have 300."
    if _has(state_dict, "selector.scorer.") and "rho" not in trained_with:
        yield "the keep ratio is not in the weights; see the file's name (rho)."
    if len(state_dict["tokenizer.level_embed"]) == 1:
        yield "the weights of a dilated last stage (DC5) look the same; see the file's name."
    if never_refined:
        yield "heads of their own but no refinement: the Sparse DETR repository refines boxes with two stages only."
