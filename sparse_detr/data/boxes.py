"""Find faults of annotated boxes, and crowds, in one way for the mapper, the loader and `check-data`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode

from sparse_detr.errors import UserError

FLAG_TEXTS = {"0": False, "0.0": False, "false": False, "no": False, "1": True, "1.0": True, "true": True, "yes": True}


class BoxFaults(NamedTuple):
    """Masks over T boxes; no box is in more than one of them, and `clipped` boxes are usable."""

    degenerate: np.ndarray  # not finite, or no width or height
    outside: np.ndarray  # no part of it inside the image
    clipped: np.ndarray  # partly outside

    @property
    def usable(self) -> np.ndarray:
        return ~(self.degenerate | self.outside)


Size = float | np.ndarray  # of one image, or (T,) of the image of each box


def find_box_faults(boxes: np.ndarray, height: Size, width: Size, *, tolerance: float = 1.0) -> BoxFaults:
    """Sort boxes by their faults.

    Args:
        boxes: (T, 4) as x1, y1, x2, y2 in pixels.
        height, width: size of the image in pixels, or (T,) of the image of each box.
        tolerance: a box may reach this many pixels outside without being `clipped` (annotation tools round).
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    x1, y1, x2, y2 = boxes.T
    size = np.stack([width, height, width, height], axis=-1)
    with np.errstate(invalid="ignore"):
        degenerate = ~(np.isfinite(boxes).all(axis=1) & (x2 > x1) & (y2 > y1))
        outside = ~degenerate & ((x1 >= width) | (y1 >= height) | (x2 <= 0) | (y2 <= 0))
        sticks_out = ((boxes < -tolerance) | (boxes > size + tolerance)).any(axis=1)
    return BoxFaults(degenerate, outside, sticks_out & ~degenerate & ~outside)


def clip_boxes(boxes: np.ndarray, height: float, width: float) -> np.ndarray:
    """Clip (T, 4) x1, y1, x2, y2 boxes to the image."""
    size = np.array([width, height, width, height], dtype=np.float64)
    return np.clip(boxes, 0.0, size)


def corners_of(boxes: np.ndarray) -> np.ndarray:
    """Return the corners x1, y1, x2, y2 of (T, 4) boxes x, y, width, height.

    They are rounded to float32 as in Detectron2, so that a box has no area here if it has none in training.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).astype(np.float32)
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float64)


def annotated_boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    """Return (T, 4) boxes, x1, y1, x2, y2 in pixels, of annotations in Detectron2's format."""
    if all(item["bbox_mode"] == BoxMode.XYWH_ABS for item in annotations):
        return corners_of(np.array([item["bbox"] for item in annotations], dtype=np.float64))
    boxes = [BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS) for item in annotations]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def read_flag(value: Any) -> bool | None:
    """Return the meaning of a flag of an annotation file: 0 or 1, or text such as "0", "false" or "yes".

    Returns:
        True or False; None for any other value. A missing value (None) is False.
    """
    if value is None:
        return False
    if isinstance(value, str):
        return FLAG_TEXTS.get(value.strip().lower())
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return None


def is_crowd(annotation: Mapping[str, Any]) -> bool:
    """Return whether an annotation marks a crowd, which training leaves out and evaluation does not count as missed.

    Raises:
        UserError: its `iscrowd` is neither 0 nor 1.
    """
    crowd = read_flag(annotation.get("iscrowd"))
    if crowd is None:
        raise UserError(f"iscrowd is {annotation['iscrowd']!r}; give 0 (one object) or 1 (a crowd)")
    return crowd
