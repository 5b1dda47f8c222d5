"""Describe the model that a converted checkpoint needs, from its entries."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sparse_detr.checkpoint.evidence import Evidence

DETREX_POLLED_SHARE = 0.5
"""Share of the tokens that detrex's PnP-DETR polls, in training as in tests."""


@dataclass(frozen=True)
class Description:
    """The recipe of a file, and the arguments that differ from file to file.

    Args:
        recipe: function of `sparse_detr.recipes`; None for a file of backbone weights.
        backbone: call of a function of `sparse_detr.recipes`; None for an unknown backbone.
        arguments: keyword arguments of the recipe.
        overrides: changes of the recipe's result, by dotted key.
        position: temperature and offset of the sine embedding of tokens; also in the arguments of recipes that have
            them.
        remarks: notes on what the entries do not show.
    """

    recipe: str | None
    backbone: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    position: tuple[float, float] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def call(self) -> str | None:
        """Return the model as a call of its recipe, to paste into a config; None for a file of backbone weights."""
        if self.recipe is None:
            return None
        arguments = {"behavior": "released", **self.arguments}
        words = [f"backbone={self.backbone or '...'}", *(f"{name}={value!r}" for name, value in arguments.items())]
        return f"{self.recipe}({', '.join(words)})"

    def __str__(self) -> str:
        lines = [
            f"recipe:    {self.recipe or 'none, these are backbone weights'}",
            f"backbone:  {self.backbone or 'unknown'}",
        ]
        if self.arguments:
            lines.append("arguments: " + ", ".join(f"{name}={value!r}" for name, value in self.arguments.items()))
        if self.call is not None:
            lines.append(f"config:    model = {self.call}")
        lines += [f"override:  model.{key}={value}" for key, value in self.overrides.items()]
        if self.position is not None:
            temperature, offset = self.position
            lines.append(f"position:  sine embedding with temperature {temperature:g} and offset {offset:g}")
        return "\n".join([*lines, *(f"note:      {remark}" for remark in self.remarks)])


def describe(evidence: Evidence) -> Description:
    """Derive the recipe of a file and its arguments."""
    if evidence.is_backbone:
        return Description(recipe=None, backbone=evidence.backbone)
    recipe = _recipe_name(evidence)
    arguments = _common_arguments(evidence) | _sizes(evidence, recipe) | ARGUMENTS[recipe](evidence)
    return Description(
        recipe=recipe,
        backbone=evidence.backbone,
        arguments={name: value for name, value in arguments.items() if value is not None},
        overrides=dict(_overrides(evidence)),
        position=_position(evidence),
        remarks=tuple(_remarks(evidence)),
    )


def _recipe_name(evidence: Evidence) -> str:
    if evidence.has("tokenizer.embed."):
        return "anchor_detr"
    if evidence.has("encoder.layers.0.object_attn."):
        return "focus_detr"
    if evidence.has("selector.pool."):
        return "pnp_detr"
    if evidence.layout.no_object:
        return "detr"
    if evidence.has("queries.reference_points.layers."):
        return "conditional_detr"
    if evidence.layout.name == "lite_dino":
        return "lite_dino"
    if evidence.start == "learned":
        return "dino"
    if evidence.has("decoder.encoder."):
        return "imfa_dab_detr"
    if evidence.has("encoder.position_scale."):
        return "dab_detr"
    if evidence.start in ("anchors", "tokens"):
        return "dab_deformable_detr"
    if evidence.has("selector.scorer."):
        return "sparse_detr"
    return "deformable_detr_topk" if evidence.start == "memory" else "deformable_detr"


def _common_arguments(evidence: Evidence) -> dict[str, Any]:
    learned = (
        "queries.embedding.weight",
        "queries.start.embedding.weight",
        "queries.anchors.logits",
        "queries.points.coordinates",
    )
    rows = next((evidence.rows(name) for name in learned if name in evidence.weights), None)
    return {
        "num_classes": evidence.num_classes,
        "num_queries": evidence.trained_with.get("num_queries") if rows is None else rows,
        "num_levels": evidence.num_levels,
        "encoder_layers": evidence.layers("encoder"),
        "decoder_layers": evidence.layers("decoder"),
    }


def _sizes(evidence: Evidence, recipe: str) -> dict[str, Any]:
    """Return the widths of the transformer, where they are not the usual ones."""
    usual = {"embed_dim": 256, "feedforward_dim": FEEDFORWARD_DIMS.get(recipe, 2048), "num_heads": 8, "num_points": 4}
    found = {
        "embed_dim": evidence.rows("decoder.layers.0.ffn_norm.weight"),
        "feedforward_dim": evidence.rows("decoder.layers.0.ffn.linear1.bias"),
        "num_heads": evidence.trained_with.get("num_heads"),
        "num_points": evidence.trained_with.get("num_points"),
    }
    return {name: found[name] for name, value in usual.items() if found[name] not in (value, None)}


def _deformable_arguments(evidence: Evidence) -> dict[str, Any]:
    two_stage = {"box": "projected", "memory": "memory"}.get(evidence.start, "off")
    return {
        "two_stage": two_stage,
        "box_refinement": two_stage != "off" or not evidence.heads_are_tied,
        "encoder_auxiliary_loss": evidence.has("encoder_heads."),
        "keep_ratio": evidence.trained_with.get("rho") or None,
    }


def _dino_arguments(evidence: Evidence) -> dict[str, Any]:
    temperature, offset = _position(evidence)
    return {
        "denoising_queries": evidence.trained_with.get("dn_number"),
        "shared_heads": evidence.heads_are_tied,
        "position_temperature": temperature,
        "position_offset": offset,
    }


def _lite_arguments(evidence: Evidence) -> dict[str, Any]:
    return {
        **_dino_arguments(evidence),
        "high_levels": evidence.trained_with.get("enc_scale", 3),
        "blocks": evidence.narrow_layers or evidence.trained_with.get("num_expansion", 3),
        "key_aware": "everywhere" if evidence.has("encoder.layers.0.self_attn.query_proj.") else "off",
        "narrow_ffn": evidence.narrow_layers > 0,
    }


def _dab_arguments(evidence: Evidence) -> dict[str, Any]:
    return {
        "num_patterns": evidence.rows("queries.patterns.weight"),
        "activation": "prelu" if evidence.has("encoder.layers.0.ffn.activation.") else "relu",
        "query_scale": "scalar" if evidence.rows("decoder.query_position.scale.layers.1.bias") == 1 else "elementwise",
        "position_temperature": _position(evidence)[0],
    }


def _detr_arguments(evidence: Evidence) -> dict[str, Any]:
    return {"origin": "detrex" if evidence.layout.origin == "detrex" else None}


def _pnp_arguments(evidence: Evidence) -> dict[str, Any]:
    detrex = evidence.layout.origin == "detrex"
    return _detr_arguments(evidence) | {
        "keep_ratio": DETREX_POLLED_SHARE if detrex else evidence.trained_with.get("sample_topk_ratio"),
        "training_keep_ratios": (DETREX_POLLED_SHARE, DETREX_POLLED_SHARE) if detrex else None,
        "num_pooled": evidence.rows("selector.pool.weight_proj.bias"),
    }


def _conditional_arguments(evidence: Evidence) -> dict[str, Any]:
    return {"origin": "detrex", "num_detections": 300} if evidence.layout.origin == "detrex" else {}


def _imfa_arguments(evidence: Evidence) -> dict[str, Any]:
    maps, numbers = (
        evidence.rows(f"decoder.encoder.sampler.{name}") for name in ("level_embed", "sampling.layers.1.bias")
    )
    return _dab_arguments(evidence) | {
        "encoder_layers": None,  # as many as decoder layers
        "activation": "prelu" if evidence.has("decoder.encoder.layers.0.ffn.activation.") else "relu",
        "num_points": None if maps is None or numbers is None else numbers // (2 + maps),
    }


def _dab_deformable_arguments(evidence: Evidence) -> dict[str, Any]:
    return {
        "num_patterns": evidence.rows("queries.patterns.weight"),
        "two_stage": evidence.start == "tokens",
    }


def _anchor_arguments(evidence: Evidence) -> dict[str, Any]:
    arguments = {
        "num_patterns": evidence.rows("queries.patterns.weight"),
        "origin": "detrex" if evidence.layout.origin == "detrex" else None,
    }
    if evidence.has("queries.points."):
        return arguments
    side = round(math.sqrt(evidence.trained_with.get("num_query_position", 300)))  # the public code rounds to a square
    return arguments | {"anchor_points": "grid", "num_queries": side**2}


# by recipe: the usual width of the feed-forward networks, where it is not 2048
FEEDFORWARD_DIMS = dict.fromkeys(("deformable_detr", "deformable_detr_topk", "sparse_detr", "anchor_detr"), 1024)
# by recipe: the arguments besides `_common_arguments`
ARGUMENTS: dict[str, Callable[[Evidence], dict[str, Any]]] = {
    "deformable_detr": _deformable_arguments,
    "deformable_detr_topk": _deformable_arguments,
    "sparse_detr": _deformable_arguments,
    "dino": _dino_arguments,
    "focus_detr": _dino_arguments,
    "detr": _detr_arguments,
    "pnp_detr": _pnp_arguments,
    "conditional_detr": _conditional_arguments,
    "lite_dino": _lite_arguments,
    "dab_detr": _dab_arguments,
    "dab_deformable_detr": _dab_deformable_arguments,
    "imfa_dab_detr": _imfa_arguments,
    "anchor_detr": _anchor_arguments,
}


def _position(evidence: Evidence) -> tuple[float, float]:
    """Return temperature and offset of the sine embedding of tokens, guessed where the file does not hold them."""
    if evidence.layout.name == "detrex_dab_detr":
        return 10.0 if _has_temperature_10(evidence) else 20.0, 0.0
    if evidence.layout.name in ("dino", "lite_dino", "dab_detr"):
        return float(evidence.trained_with.get("pe_temperatureH", 20)), 0.0
    if evidence.layout.name == "imfa_dab_detr":
        return float(evidence.trained_with.get("pe_temperatureH", 20)), -0.5
    if evidence.layout.name == "mmdet_dino":
        return 20.0, 0.0
    if evidence.has("tokenizer.projection.weight"):
        return 10_000.0, 0.0
    return 10_000.0, -0.5


def _overrides(evidence: Evidence) -> Iterator[tuple[str, Any]]:
    if _never_refined(evidence):
        yield "decoder.refinement._target_", "sparse_detr.modeling.decoder.deformable.NoRefinement"
    if evidence.start in ("box", "memory") and evidence.binary_proposals != (evidence.start == "box"):
        yield "queries.class_agnostic", evidence.binary_proposals
    if evidence.layout.name == "detrex_dab_detr":
        yield "decoder.layers.memory_padding", "visible"


def _never_refined(evidence: Evidence) -> bool:
    """Return whether layers have separate heads but refine no box, as in one-stage files of Sparse DETR."""
    return (
        evidence.layout.origin == "official"
        and evidence.start == "embedding"
        and not evidence.heads_are_tied
        and not any("decoder.bbox_embed" in name for name in evidence.public_names)
    )


def _has_temperature_10(evidence: Evidence) -> bool:
    """Return whether the position temperature is 10, as in detrex's DAB-DETR with dilated ResNet-50 and no patterns."""
    return bool(evidence.is_dilated) and evidence.depth == 50 and not evidence.has("queries.patterns.")


def _remarks(evidence: Evidence) -> Iterator[str]:
    yield 'use behavior="released": public weights were trained with it'
    if evidence.num_classes == 91:
        yield "its classes are COCO's category ids: give class_channels=sparse_detr.checkpoint.COCO_IDS as well"
    if evidence.start in ("box", "memory", "tokens") and "num_queries" not in evidence.trained_with:
        yield "a two-stage file does not hold its number of queries; the papers' models have 300"
    if evidence.layout.name == "sparse_detr" and "rho" not in evidence.trained_with:
        yield "the keep ratio is not in the weights; see the file's name (rho)"
    yield from _backbone_remarks(evidence)
    if evidence.layout.name == "lite_dino":
        yield from _level_remarks(evidence)
    yield from _position_remarks(evidence)
    if _never_refined(evidence):
        yield "every layer has its own head but refines no box: the Sparse DETR repository does so only with two stages"
    if evidence.layout.origin == "mmdetection" and "ema_state_dict" in evidence.also_holds:
        yield "MMDetection saves averaged weights as state_dict; those before averaging (ema_state_dict) are left out"
    elif evidence.also_holds:
        others = ", ".join(evidence.also_holds)
        yield f"the file also holds other weights ({others}), which are left out; --ema converts averaged ones"
    if wrong := [name for name, value in evidence.weights.items() if not bool(value.isfinite().all())]:
        yield (
            f"{len(wrong)} entries hold NaN or infinite numbers, such as {wrong[0]}: the training has failed, or the "
            "file is damaged; take an earlier checkpoint, or fetch it again"
        )


def _backbone_remarks(evidence: Evidence) -> Iterator[str]:
    single_scale = evidence.num_levels in (1, None)
    if single_scale and evidence.is_dilated is None and evidence.depth is not None:
        default = ", but by default it is in the authors' code" if evidence.layout.name == "anchor_detr" else ""
        yield (
            f"the weights do not show whether the last stage is dilated (DC5), and here it is not{default}; see the "
            "file's name, and give --dilated or --not-dilated (in Python dilated=True or False)"
        )


def _level_remarks(evidence: Evidence) -> Iterator[str]:
    """Say what a file of Lite DETR does not hold about the levels that its encoder refines."""
    if "enc_scale" not in evidence.trained_with:
        yield (
            "the number of coarse levels is not in the file, and a wrong one loads without an error; high_levels=3 is "
            "right for H3L1 (s3 in the file's name), for H2L2 (s2) give high_levels=2"
        )
    if not evidence.narrow_layers and "num_expansion" not in evidence.trained_with:
        yield "the number of blocks is not in the file, and a wrong one loads without an error; see its name (ex)"
    if any(".key_proj." in name for name in evidence.public_names):
        yield "its keys have a projection of their own (proj_key), which is not supported: results will be wrong"


def _position_remarks(evidence: Evidence) -> Iterator[str]:
    """Say how to find temperature and offset of the sine embedding of tokens where models of a paper differ."""
    if evidence.layout.name in ("detrex_dino", "detrex_focus_detr") and evidence.depth is not None:
        yield (
            "the setting of the sine embedding is not in the weights, and a wrong one costs AP: 10000 and -0.5, as "
            "stated, for 12 epochs; position_temperature=20 and position_offset=0 for 24 and 36 epochs; see the file's "
            "name (12ep, 24ep, 36ep)"
        )
    stated = evidence.layout.name in ("dino", "lite_dino", "dab_detr", "imfa_dab_detr")
    if stated and "pe_temperatureH" not in evidence.trained_with:
        yield "the temperature of the sine embedding is not in the file; the authors' configurations have 20"
    if evidence.layout.name == "detrex_dab_detr" and evidence.is_dilated:
        yield (
            "the position temperature is not in the weights; detrex's DC5 configurations have 10 for ResNet-50 without "
            "patterns and 20 for the others"
        )
