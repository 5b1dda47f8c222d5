"""Convert public checkpoints of the DETR family, and of ImageNet backbones, to our names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sparse_detr.checkpoint.coco_classes import (
    check_class_rows,
    coco_80_to_91,
    coco_91_to_80,
    without_unused_labels,
)
from sparse_detr.checkpoint.describe import Description, describe
from sparse_detr.checkpoint.evidence import Evidence
from sparse_detr.checkpoint.layouts import LAYOUTS, Layout
from sparse_detr.checkpoint.match import equal_values
from sparse_detr.checkpoint.name_maps import count_indices, join_parts, part_of, rename
from sparse_detr.checkpoint.unwrap import unwrap
from sparse_detr.errors import UserError

LINEAR = re.compile(r"selector\.scorer\.mlp\.layers\.\d+\.weight")


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """Weights under our names, and what became of every entry of the file.

    Args:
        state_dict: our name to tensor.
        source: the layout that the file has, a key of `LAYOUTS`.
        names: public name to our name; several may share one of ours (aliases).
        num_aliases: entries that repeat another.
        dropped: entries left out on purpose (classifier, counters).
        unknown: entries that no rule knows.
        description: the model that the file needs.
    """

    state_dict: dict[str, Tensor]
    source: str
    names: dict[str, str]
    num_aliases: int
    dropped: tuple[str, ...]
    unknown: tuple[str, ...]
    description: Description

    @property
    def known_share(self) -> float:
        """Return the share of the file's weights that a rule knows, in [0, 1]."""
        return len(self.names) / max(1, len(self.names) + len(self.unknown))

    def __str__(self) -> str:
        lines = [
            f"source:    {self.source}: {len(self.names)} entries renamed to {len(self.state_dict)} "
            f"({self.num_aliases} aliases, equal), {len(self.dropped)} left out, "
            f"{len(self.unknown)} unknown",
            *(f"unknown:   {name}" for name in self.unknown[:20]),
        ]
        if len(self.unknown) > 20:
            lines.append(f"unknown:   ... and {len(self.unknown) - 20} more")
        return "\n".join([*lines, str(self.description)])


def convert_checkpoint(
    state_dict: Mapping[str, Any],
    source: str = "auto",
    num_classes: int | None = None,
    ema: bool = False,
    dilated: bool | None = None,
) -> ConvertedCheckpoint:
    """Rename the entries of a public checkpoint.

    Args:
        state_dict: content of the file: the weights, or the training script's dict around them.
        source: a key of `LAYOUTS`, or "auto" to recognise the layout by its names.
        num_classes: None keeps the class rows; 80 takes those of COCO's 80 categories out of 91; 91 puts 80 rows at the
            category ids of COCO, in models with a row for "no object".
        ema: convert the averaged weights of the file.
        dilated: whether the last stage of the ResNet is dilated (DC5), for files that do not show it; None to take what
            the file says.

    Returns:
        The renamed weights with a record of what became of every entry.

    Raises:
        UserError: the layout is unknown, names of one weight hold different values, class heads differ in their rows,
            a layer lacks an entry that all others have, the classes cannot be mapped, or the backbone cannot be
            dilated.
    """
    if state_dict.get("matching_heuristics"):
        raise UserError(
            "this is a file of Detectron2's model zoo, which needs no conversion; give it as train.init_checkpoint "
            "(lazy) or MODEL.WEIGHTS (yaml)"
        )
    file = unwrap(state_dict, averaged=ema)
    layout = _layout(source, file.weights)
    tables = layout.tables(list(file.weights))
    renamed = {name: rename(name, tables) for name in file.weights}
    names = {name: ours for name, (ours, _) in renamed.items() if ours is not None}
    weights = _merge_aliases(file.weights, names)
    if not weights:
        raise UserError(f"no entry of this file is named as in a {layout.name} checkpoint; try --source auto")
    merged, weights = len(weights), without_unused_labels(_one_head_a_layer(_as_linear_layers(join_parts(weights))))
    check_class_rows(weights)
    _check_layers(weights)
    if layout.origin == "mmdetection":
        weights |= _absent_biases(weights)
    told = {} if dilated is None else {"dilation": dilated}
    evidence = Evidence(weights, frozenset(file.weights), file.arguments | told, layout, file.others)
    if dilated and not evidence.can_be_dilated:
        raise UserError("only a ResNet-50, 101 or 152 can be dilated, and this file has another backbone; leave it out")
    weights = _with_classes(weights, num_classes, evidence)
    return ConvertedCheckpoint(
        state_dict=weights,
        source=layout.name,
        names={name: part_of(ours)[0] for name, ours in names.items()},
        num_aliases=len(names) - merged,
        dropped=file.dropped + tuple(name for name, (ours, known) in renamed.items() if known and ours is None),
        unknown=tuple(name for name, (_, known) in renamed.items() if not known),
        description=describe(replace(evidence, weights=weights)),
    )


def has_our_names(weights: Mapping[str, Tensor]) -> bool:
    """Return whether a training of this project, or `convert`, wrote the weights."""
    return any(name.startswith("tokenizer.") for name in weights)


def _layout(source: str, weights: Mapping[str, Tensor]) -> Layout:
    if source in LAYOUTS:
        return LAYOUTS[source]
    if source != "auto":
        raise UserError(f"unknown source {source!r}; choose auto or one of {', '.join(LAYOUTS)}")
    layout = next((layout for layout in LAYOUTS.values() if layout.recognises(weights)), None)
    if layout is not None:
        return layout
    if has_our_names(weights):
        raise UserError("this checkpoint already has the names of this project; there is nothing to convert")
    raise UserError(
        f"unknown kind of checkpoint: {len(weights)} entries, such as {', '.join(list(weights)[:3])}; "
        f"if it is one of these, give --source (in Python source): {', '.join(LAYOUTS)}"
    )


def _as_linear_layers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the kernel size out of 1x1 convolutions that are linear layers here."""
    return {name: value.flatten(1) if LINEAR.fullmatch(name) else value for name, value in weights.items()}


def _merge_aliases(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors by our names, after a check that all public names of one weight hold equal values."""
    result: dict[str, Tensor] = {}
    first_name: dict[str, str] = {}
    for public, ours in names.items():
        if ours not in result:
            result[ours], first_name[ours] = weights[public], public
        else:
            _check_equal(weights, first_name[ours], public)
    return result


def _check_equal(weights: Mapping[str, Tensor], one: str, other: str) -> None:
    a, b = weights[one], weights[other]
    if a.shape != b.shape:
        raise UserError(f"{one} {list(a.shape)} and {other} {list(b.shape)} name one weight but differ in shape")
    if not equal_values(a, b):
        difference = (a.double() - b.double()).abs().max().item()
        raise UserError(
            f"{one} and {other} name one weight but differ by up to {difference:g}: the file was edited or is damaged"
        )


def _one_head_a_layer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the class and box branches of the first decoder layer to the others if the file has one for all."""
    result = dict(weights)
    num_layers = count_indices(weights, r"decoder\.layers\.(\d+)\.")
    for branch in ("class_embed", "box_embed"):
        if count_indices(weights, rf"decoder_heads\.(\d+)\.{branch}\.") == 1:
            first = {name: value for name, value in weights.items() if name.startswith(f"decoder_heads.0.{branch}.")}
            for layer in range(1, num_layers):
                result |= {name.replace(".0.", f".{layer}.", 1): value for name, value in first.items()}
    return result


def _check_layers(weights: Mapping[str, Tensor]) -> None:
    """Check that no layer lacks an entry that all others of at least three have."""
    layers_with: dict[tuple[str, str], set[int]] = {}
    for name in weights:
        if match := re.match(r"((?:en|de)coder\.layers)\.(\d+)\.(.+)", name):
            layers_with.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (stack, entry), having in layers_with.items():
        layers = {layer for (other, _), found in layers_with.items() if other == stack for layer in found}
        if len(layers) > 2 and len(absent := layers - having) == 1:
            raise UserError(
                f"{stack}.{absent.pop()} lacks {entry}, which all other layers have: the file was edited or is "
                "damaged; fetch it again"
            )


def _absent_biases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a bias of 0 for every projection without one: MMDetection has none before a normalisation."""
    kernels = (name for name in weights if re.fullmatch(r"tokenizer\.projections\.\d+\.conv\.weight", name))
    absent = {name.replace(".weight", ".bias"): weights[name] for name in kernels}
    return {name: value.new_zeros(len(value)) for name, value in absent.items() if name not in weights}


def _with_classes(weights: dict[str, Tensor], num_classes: int | None, evidence: Evidence) -> dict[str, Tensor]:
    found, no_object = evidence.num_classes, evidence.layout.no_object
    if num_classes is None or found is None or num_classes == found:
        return weights
    if (found, num_classes) == (91, 80):
        return coco_91_to_80(weights, binary_proposals=evidence.binary_proposals, no_object=no_object)
    if (found, num_classes) == (80, 91) and no_object:
        return coco_80_to_91(weights)
    raise UserError(
        f"the file has {found} classes and {num_classes} were asked for, but only COCO's 91 can become 80; to "
        "fine-tune on another number of classes, leave --classes out: training skips the class rows and says so"
    )
