"""What is wrong with annotated boxes, for the mapper, the loader and `check-data` alike."""

from typing import Any, NamedTuple

import numpy as np
from detectron2.structures import BoxMode


class BoxFaults(NamedTuple):
    """Masks over T boxes; a box is in at most one of the first two, `clipped` boxes are usable."""

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
        height, width: the size in pixels of the image, or (T,) of each box's image.
        tolerance: pixels that a box may stick out without counting as `clipped` (annotation tools round).
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


def annotated_boxes(annotations: list[dict[str, Any]]) -> np.ndarray:
    """(T, 4) boxes, x1, y1, x2, y2 in pixels, of annotations in Detectron2's format."""
    boxes = [BoxMode.convert(list(item["bbox"]), item["bbox_mode"], BoxMode.XYXY_ABS) for item in annotations]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
