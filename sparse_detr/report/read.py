"""Read COCO results and check that they belong to the true boxes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_detr.errors import UserError

PARTS = ("images", "categories", "annotations")
FIELDS = ("image_id", "category_id", "bbox", "score")


def read_results(path: str | Path, truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the detections of a COCO results file, with the fields that scores of boxes read.

    Args:
        path: JSON file, a list of dicts with `image_id`, `category_id`, `bbox` (x, y, width, height) and `score`; or
            what `sparse-detr predict` writes, whose images and classes are found by their names.
        truth: content of the COCO file that the detections are of.

    Raises:
        UserError: the file cannot be read, has no detections, or they are not of these images and classes.
    """
    rows = _read_rows(path, truth)
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


def _read_rows(path: str | Path, truth: Mapping[str, Any]) -> list[Any]:
    """Return the entries of a file with the ids of the true boxes' file."""
    content = _read_json(path)
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in PARTS):
        content = list(_renamed(path, content, truth))
    if not isinstance(content, list):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; a COCO results file is a list of detections")
    if not content:
        raise UserError(f"{path} holds no detections, so there is nothing to report")
    return content


def _renamed(path: str | Path, content: Mapping[str, Any], truth: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the annotations of a COCO file with the ids that their images and classes have in another one."""
    try:
        images = {item["id"]: item["file_name"] for item in content["images"]}
        classes = {item["id"]: item["name"] for item in content["categories"]}
        true_images, true_classes = _ids_of_files(truth["images"]), {c["name"]: c["id"] for c in truth["categories"]}
        for row in content["annotations"]:
            if "score" not in row:
                raise UserError(f"{path} has boxes without a score, as true boxes are; give the file of the detections")
            image, name = images[row["image_id"]], classes[row["category_id"]]
            number = true_images.get(image, true_images.get(Path(image).name))
            if number is None:
                raise UserError(f"{path} has detections in {image}, which is not in the true boxes' file")
            if name not in true_classes:
                raise UserError(
                    f"{path} has detections of {name!r}, but the true boxes' file has {', '.join(true_classes)}"
                )
            yield {**row, "image_id": number, "category_id": true_classes[name]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of `sparse-detr predict` ({error!r}); give a COCO results file") from error


def _ids_of_files(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the ids of images by their file names, also without folders where that is clear."""
    whole = {image["file_name"]: image["id"] for image in images}
    counts = Counter(Path(name).name for name in whole)
    return {**{Path(name).name: number for name, number in whole.items() if counts[Path(name).name] == 1}, **whole}


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no complete JSON"
        raise UserError(f"{path} cannot be read ({reason}); give a COCO results file") from error


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
