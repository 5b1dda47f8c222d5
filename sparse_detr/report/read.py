"""Read COCO results and check that they belong to the true boxes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparse_detr.errors import UserError

FIELDS = ("image_id", "category_id", "bbox", "score")


def read_results(path: str | Path, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the detections of a COCO results file, with the fields that scores of boxes read.

    Args:
        path: JSON file, a list of dicts with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`.
        truth: content of the COCO file that the detections are of.

    Raises:
        UserError: the file cannot be read, has no detections, or they are not of these images and classes.
    """
    rows = _read_list(path)
    images, classes = ({item["id"] for item in truth[key]} for key in ("images", "categories"))
    results = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or any(field not in row for field in FIELDS):
            raise UserError(f"entry {number} of {path} is no detection; each needs {', '.join(FIELDS)}")
        if not _is_known(row["image_id"], images):
            raise UserError(
                f"{path} has a detection of image {row['image_id']!r}, which is not in the true boxes' file"
            )
        if not _is_known(row["category_id"], classes):
            raise UserError(
                f"{path} has a detection of category {row['category_id']!r}, but the true boxes' file has "
                f"{', '.join(map(str, sorted(classes)[:10]))}; results name category ids, not class indices"
            )
        results.append({field: row[field] for field in FIELDS})
    _check_numbers(path, results)
    return results


def _read_list(path: str | Path) -> list[Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no complete JSON"
        raise UserError(f"{path} cannot be read ({reason}); give a COCO results file") from error
    if not isinstance(content, list):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; a COCO results file is a list of detections")
    if not content:
        raise UserError(f"{path} holds no detections, so there is nothing to report")
    return content


def _is_known(value: Any, known: set[int]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in known


def _check_numbers(path: str | Path, results: list[dict[str, Any]]) -> None:
    """Refuse boxes that are not four finite numbers with sides of 0 or more, and scores outside of [0, 1]."""
    for field, shape, words in (("bbox", (len(results), 4), "x, y, width, height"), ("score", (len(results),), "")):
        try:
            values = np.array([row[field] for row in results], dtype=np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.shape != shape:
            raise UserError(f"{path} has a {field} that is no number{'s: ' + words if words else ''}")
        bad = ~np.isfinite(values).reshape(len(results), -1).all(1)
        bad |= (values[:, 2:] < 0).any(1) if field == "bbox" else (values < 0) | (values > 1)
        if bad.any():
            first = int(bad.argmax())
            remedy = f"give {words}, sides of 0 or more" if words else "give a score from 0 to 1"
            raise UserError(f"entry {first} of {path} has the {field} {results[first][field]}; {remedy}")
