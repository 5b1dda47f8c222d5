"""Boxes around COCO's two kinds of masks, polygons and run lengths (RLE), for files without boxes."""

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

# Compressed run lengths are text of 6-bit digits, "0" to "o"; after a digit from "P" on the same number continues.
_DIGITS = range(ord("0"), ord("o") + 1)
_FIRST_CONTINUED = ord("P")


def box_of_mask(segmentation: Any, height: int, width: int) -> list[float] | None:
    """Return the smallest box around a mask.

    Args:
        segmentation: a list of polygons, one polygon, or RLE of either kind, as in COCO's `segmentation`.
        height, width: of the image in pixels.

    Returns:
        x, y, width, height in pixels; None if the mask is empty, or not a mask of this image.
    """
    if isinstance(segmentation, list):
        return _box_of_polygons(segmentation)
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        return _box_of_runs(segmentation.get("counts"), height, width)
    return None


def _box_of_polygons(polygons: list[Any]) -> list[float] | None:
    parts = polygons if all(isinstance(part, list) for part in polygons) else [polygons]
    numbers = [number for part in parts for number in part]
    if not numbers or any(len(part) % 2 for part in parts) or not all(map(_is_coordinate, numbers)):
        return None
    points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return [left, top, right - left, bottom - top]


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53


def _box_of_runs(counts: Any, height: int, width: int) -> list[float] | None:
    """Return the box of run lengths after a check: pycocotools reads past the end of broken ones."""
    if isinstance(counts, str):
        digits = [ord(digit) for digit in counts]
        if not digits or any(digit not in _DIGITS for digit in digits) or digits[-1] >= _FIRST_CONTINUED:
            return None
        runs = {"size": [height, width], "counts": counts.encode("ascii")}
    elif _are_runs(counts) and sum(counts) == height * width < 2**32:
        runs = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    else:
        return None
    x, y, box_width, box_height = (float(number) for number in coco_mask.toBbox(runs))
    fits = math.isfinite(x + y) and x + box_width <= width and y + box_height <= height
    return [x, y, box_width, box_height] if fits and box_width > 0 and box_height > 0 else None


def _are_runs(counts: Any) -> bool:
    return isinstance(counts, list) and all(type(count) is int and count >= 0 for count in counts)
