"""Images as columns: what Ray Data, Hugging Face's datasets and the like pass to a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sparse_detr.errors import ImageError

if TYPE_CHECKING:
    from detectron2.structures import Instances

IMAGE_COLUMNS = ("image", "path")
FOUND_COLUMNS = ("boxes", "scores", "labels")


def detect_columns(columns: Mapping[str, Any], detect: Callable[[list[Any]], list[Instances]]) -> dict[str, Any]:
    """Return the columns without the images, and with `boxes`, `scores` and `labels`.

    Args:
        columns: a table as a dict, with images in the column `image` or else paths in the column `path`: a list, an
            array of objects, or a stack of images of one size (B, H, W, 3). A single image is a single row.
        detect: returns the detections of a list of images.

    Returns:
        dict: of a table, arrays of B arrays: (n, 4) float32 x0, y0, x1, y1 in pixels; (n,) float32; (n,) int64. Of a
        single row, these arrays themselves.

    Raises:
        ImageError: there is no such column.
    """
    name = next((name for name in IMAGE_COLUMNS if name in columns), None)
    if name is None:
        given = ", ".join(map(str, columns)) or "none"
        raise ImageError(f"image 0 is a dict of {given}; give images as `image`, or their paths as `path`")
    kept = {key: value for key, value in columns.items() if key != "image"}
    images = columns[name]
    if not _is_column(images):
        (row,) = _arrays(detect([images]))
        return {**kept, **dict(zip(FOUND_COLUMNS, row, strict=True))}
    rows = _arrays(detect(list(images)))
    return {**kept, **{name: _objects([row[i] for row in rows]) for i, name in enumerate(FOUND_COLUMNS)}}


def _is_column(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 4 or images.dtype == object or images.dtype.kind in "US"
    if isinstance(images, Tensor):
        return images.ndim == 4
    return isinstance(images, Sequence) and not isinstance(images, str | bytes)


def _arrays(found: Sequence[Instances]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    values = [(one.pred_boxes.tensor, one.scores, one.pred_classes) for one in found]
    return [tuple(value.cpu().numpy() for value in row) for row in values]  # type: ignore[misc]


def _objects(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return an array of arrays, also where all have one shape."""
    column = np.empty(len(arrays), dtype=object)
    for row, array in enumerate(arrays):
        column[row] = array
    return column
