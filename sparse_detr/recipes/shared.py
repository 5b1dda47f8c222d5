"""What all recipes share: the detector around their parts, and the options that every model has."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

from detectron2.config import LazyCall as L

from sparse_detr.modeling.classification import SigmoidFocal
from sparse_detr.modeling.decoder import NoAttentionMap
from sparse_detr.modeling.detector import GeneralizedDETR, TopKDetections
from sparse_detr.modeling.heads import ProposalGenerator, make_heads
from sparse_detr.modeling.selection import KeepAllTokens
from sparse_detr.modeling.training import (
    HungarianMatcher,
    NoAuxiliaryProposals,
    NoDenoising,
    NoSupervision,
    SetCriterion,
)
from sparse_detr.recipes.backbones import BackboneSpec

Behavior = Literal["exact", "released"]
Number = TypeVar("Number", int, float)
Origin = Literal["official", "detrex"]
"""Whose weights a model with `behavior="released"` loads: those of the authors or of detrex, where they differ."""

DETREX_IOU_EPS, DETREX_LOGIT_EPS = 1e-6, 1e-3


def detector(
    *,
    backbone: BackboneSpec,
    tokenizer: Any,
    encoder: Any,
    queries: Any,
    decoder: Any,
    heads: Mapping[str, Any],
    projection: Any = None,
    attention_map: Any = None,
    num_classes: int,
    behavior: Behavior,
    num_detections: int = 100,
    class_channels: Sequence[int] | None = None,
    **options: Any,
) -> Any:
    """Return the LazyCall of a detector that keeps all tokens, without denoising, with focal losses.

    A recipe calls it with the parts of its paper, and may replace others in the result.

    Args:
        tokenizer, encoder, queries, decoder, projection: LazyCalls of the parts, see `DetectionTransformer`.
        heads: arguments of `make_heads`, without `num_classes` and `classification`.
        attention_map: see `GeneralizedDETR`; none is made if None.
        behavior: `exact`, or `released` for models with the weights of the public implementation.
        num_detections: largest number of detections of an image.
        options: other arguments of `GeneralizedDETR`.

    Raises:
        ValueError: the behavior is unknown.
    """
    check_choice("behavior", behavior, get_args(Behavior))
    released = behavior == "released"
    # The parts are built in this order, so the initial weights of a seed depend on it.
    return L(GeneralizedDETR)(
        backbone=backbone.config,
        in_features=list(backbone.in_features),
        tokenizer=tokenizer,
        **_pixels_of(backbone),
        proposals=L(ProposalGenerator)(border="dropped" if released else "clamped"),
        projection=projection,
        selector=L(KeepAllTokens)(),
        encoder=encoder,
        queries=queries,
        denoising=L(NoDenoising)(),
        decoder=decoder,
        heads=L(make_heads)(**heads, num_classes="${..num_classes}", classification="${..criterion.classification}"),
        attention_map=attention_map or L(NoAttentionMap)(),
        auxiliary_proposals=L(NoAuxiliaryProposals)(),
        supervision=L(NoSupervision)(),
        criterion=L(SetCriterion)(
            matcher=L(HungarianMatcher)(classification="${..classification}"), classification=L(SigmoidFocal)()
        ),
        postprocess=L(TopKDetections)(classification="${..criterion.classification}", num_detections=num_detections),
        num_classes=num_classes,
        class_channels=class_channels,
        supervise_surplus_rows=released,
        **options,
    )


def _pixels_of(backbone: BackboneSpec) -> dict[str, Any]:
    """Return mean and standard deviation of pixels as arguments of `GeneralizedDETR`, where a backbone has its own."""
    own = {"pixel_mean": backbone.pixel_mean, "pixel_std": backbone.pixel_std}
    return {name: list(values) for name, values in own.items() if values is not None}


def range_ends(name: str, values: Sequence[Number]) -> tuple[Number, Number]:
    """Return the two ends of a range; raise `ValueError` if there are not two."""
    if len(values) != 2:
        raise ValueError(f"{name} must be the two ends of a range, got {tuple(values)}")
    smallest, largest = values
    return smallest, largest


def split_options(options: Mapping[str, Any], function: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the options of a recipe into those of `function` and those of its base; both get `behavior`.

    Returns:
        The options that are keyword-only parameters of `function`, and the others.
    """
    parameters = inspect.signature(function).parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    own = {name: value for name, value in options.items() if name in names}
    others = {name: value for name, value in options.items() if name not in names or name == "behavior"}
    return own, others


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        hint = "; quote it in yaml, where off without quotes is False" if value is False else ""
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}{hint}")


def check_single_map(backbone: BackboneSpec, reader: str) -> None:
    """Raise `ValueError` for a backbone with several maps; `reader` names what reads only one."""
    if len(backbone.in_features) != 1:
        names = ", ".join(backbone.in_features)
        raise ValueError(f"{reader} reads one map, but the backbone gives {names}; keep the last one only")


def is_of_detrex(behavior: Behavior, origin: Origin) -> bool:
    """Return whether a model has weights of detrex; raise `ValueError` for an unknown origin."""
    check_choice("origin", origin, get_args(Origin))
    return behavior == "released" and origin == "detrex"


def use_detrex_eps(model: Any) -> None:
    """Set the smallest share in the logit of a reference point, and what is added to the denominators of the IoU."""
    model.decoder.logit_eps = DETREX_LOGIT_EPS
    model.criterion.iou_eps = model.criterion.matcher.iou_eps = DETREX_IOU_EPS
