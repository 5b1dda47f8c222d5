"""What an exported file says of itself, as JSON: `sparse_detr` of ONNX's metadata, `sparse_detr.json` of the others."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from sparse_detr.errors import UserError

KEY = "sparse_detr"
FORMAT_VERSION = 1
MIN_KEPT = 4


@dataclass(frozen=True, kw_only=True)
class Metadata:
    """What a process needs to know of an exported file.

    Args:
        config: name of the config.
        package_version: version of the package that wrote the file.
        class_names: by label; empty if they are unknown.
        num_classes: labels are below it; None if it is unknown.
        channel_order: "RGB" or "BGR", of the pixels of 0 to 255 that the file takes.
        short_size, max_size: preprocessing resizes the short side to `short_size`, or to less so that the long side is
            at most `max_size` pixels, with bilinear interpolation and antialiasing (Pillow); None if the config
            preprocesses in another way.
        value_range: the values of black and white of gray images of more than 8 bits; None for the default.
        keep_ratio: share of the tokens that the first encoder layer refines; None if there is no such share.
        budget: the budget that the file was written with, as text; None for the model's own.
        fixed_size: (h, w) of the images that the file takes, into which smaller ones are padded; None if all sizes are
            taken.
        min_size: shortest side in pixels of a batch.
        num_detections: detections an image, at most.
        needs_package: the file holds operators of this package, so that only processes with it can run the file.
        plugin: runtime whose plugin the file needs; None for standard operators.
        format_version: of this record.
    """

    config: str
    package_version: str
    class_names: list[str]
    num_classes: int | None
    channel_order: str
    short_size: int | None
    max_size: int | None
    value_range: list[float] | None = None
    keep_ratio: float | None = None
    budget: str | None = None
    fixed_size: list[int] | None = None
    min_size: int = 1
    num_detections: int | None = None
    needs_package: bool = False
    plugin: str | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str | bytes | None, name: str | os.PathLike[str]) -> Metadata:
        """Read a record.

        Args:
            text: the JSON; empty or None if the file has no record.
            name: the file, for messages.

        Raises:
            UserError: there is no record, or it is of a later version.
        """
        if not text:
            raise UserError(f"{name} was not written by `sparse-detr export`; export the model with that command")
        found: dict[str, Any] = json.loads(text)
        if found.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(
                f"{name} was written by version {found.get('package_version')} of sparse_detr, whose files this "
                "version cannot read; update sparse_detr, or export the model again"
            )
        known = {field.name for field in fields(Metadata)}
        return Metadata(**{key: value for key, value in found.items() if key in known})


def resize_of(mapper: Any) -> tuple[int | None, int | None]:
    """Return the short side and the longest long side of a mapper that only resizes by the short side, else None."""
    from detectron2.data import transforms as T

    augmentations = mapper.augmentations.augs if isinstance(mapper.augmentations, T.AugmentationList) else []
    if len(augmentations) != 1 or not isinstance(augmentations[0], T.ResizeShortestEdge):
        return None, None
    resize = augmentations[0]
    sizes = set(resize.short_edge_length)
    if len(sizes) != 1 or resize.interp != 2:  # Pillow's number of bilinear
        return None, None
    return int(sizes.pop()), int(resize.max_size)


def smallest_side(detector: nn.Module, budget: float | str | None = None) -> int:
    """Return the shortest side in pixels of a batch of which a file with open sizes holds.

    PyTorch takes a size of one for a constant. So the coarsest map has two cells a side, and several tokens are kept.

    Args:
        detector: the model.
        budget: how many tokens are kept, as in a call of the model; None for the model's own.
    """
    strides = _strides(detector)
    share = detector.keep_ratio if budget is None else _share(detector, budget)
    side = max(strides) + 1
    while share * sum((-(-side // stride)) ** 2 for stride in strides) < MIN_KEPT:  # type: ignore[operator]
        side += max(strides)
    return side


def _share(detector: nn.Module, budget: float | str) -> float:
    from sparse_detr.modeling.effort import effort_of_call
    from sparse_detr.modeling.selection import budget_of_call

    own = getattr(detector.selector, "budget", None)
    return 1.0 if own is None else budget_of_call(effort_of_call(budget).tokens, own).keep_ratio


def _strides(detector: nn.Module) -> list[int]:
    """Return how many pixels of the image a cell of every map has at one side."""
    import torch

    side = 512
    images = next(detector.parameters()).new_zeros(1, 3, side, side)
    with torch.no_grad():
        tokens = detector.tokenize(images, [(side, side)])  # type: ignore[operator]
    pyramids = [tokens.pyramid, *([] if tokens.maps is None else [tokens.maps.pyramid])]
    return [-(-side // min(shape)) for pyramid in pyramids for shape in pyramid.spatial_shapes]
