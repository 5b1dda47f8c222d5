"""Read COCO results and check that they belong to the true boxes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparse_detr.errors import UserError

PARTS = ("images", "categories", "annotations")
FIELDS = ("image_id", "category_id", "bbox", "score")
_MOST_NAMED = 10


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
                f"{path} has a detection of image {_shown(row['image_id'])}, which is not in the true boxes' file"
                f"{_remark(row['image_id'])}"
            )
        if not _is_known(row["category_id"], classes):
            raise UserError(
                f"{path} has a detection of category {_shown(row['category_id'])}, but the true boxes' file has "
                f"{_some(sorted(classes))}; results name category ids, not class indices{_remark(row['category_id'])}"
            )
        _check_numbers(f"entry {number} of {path}", row)
        results.append({field: row[field] for field in FIELDS})
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
        exact = {image["file_name"] for image in truth["images"]}
        files = _files_by_name(images.values())
        for row in content["annotations"]:
            if "score" not in row:
                raise UserError(f"{path} has boxes without a score, as true boxes are; give the file of the detections")
            image, name = images[row["image_id"]], classes[row["category_id"]]
            number = true_images.get(image, true_images.get(Path(image).name))
            if number is None:
                raise UserError(f"{path} has detections in {image}, which is not in the true boxes' file")
            if image not in exact and len(twins := files[Path(image).name]) > 1:
                raise UserError(
                    f"{path} has detections in {twins[0]} and {twins[1]}, and the true boxes' file has one "
                    f"{Path(image).name}; write file names with the folders that the true boxes' file has"
                )
            if name not in true_classes:
                raise UserError(
                    f"{path} has detections of {name!r}, but the true boxes' file has {_some(true_classes)}"
                )
            yield {**row, "image_id": number, "category_id": true_classes[name]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of `sparse-detr predict` ({error!r}); give a COCO results file") from error


def _files_by_name(files: Iterable[str]) -> dict[str, list[str]]:
    """Return the different files by their names without folders."""
    found: dict[str, list[str]] = {}
    for file in dict.fromkeys(files):
        found.setdefault(Path(file).name, []).append(file)
    return found


def _ids_of_files(images: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the ids of images by their file names, also without folders where that is clear."""
    whole = {image["file_name"]: image["id"] for image in images}
    counts = Counter(Path(name).name for name in whole)
    return {**{Path(name).name: number for name, number in whole.items() if counts[Path(name).name] == 1}, **whole}


def _read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no complete JSON"
        raise UserError(f"{path} cannot be read ({reason}); give a COCO results file") from error


def _is_known(value: Any, known: set[int]) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in known


def _remark(value: Any) -> str:
    """Return what to say of an id that looks like a number but is none."""
    return "" if isinstance(value, int) and not isinstance(value, bool) else "; ids are whole numbers"


def _check_numbers(entry: str, row: Mapping[str, Any]) -> None:
    """Refuse a box that is not four finite numbers with sides of 0 or more, and a score outside of [0, 1].

    Args:
        entry: which one it is, for messages.
        row: a detection.
    """
    box, score = row["bbox"], row["score"]
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise UserError(f"{entry} has a bbox that is no numbers: x, y, width, height; it is {_shown(box)}")
    if not all(map(_is_finite, box)) or box[2] < 0 or box[3] < 0:
        raise UserError(f"{entry} has the bbox {_shown(box)}; give x, y, width, height, sides of 0 or more")
    if not _is_number(score):
        raise UserError(f"{entry} has a score that is no number: {_shown(score)}; give a score from 0 to 1")
    if not 0 <= score <= 1:
        raise UserError(f"{entry} has the score {_shown(score)}; give a score from 0 to 1")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # a bool is an int, but no number here


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # math.isfinite raises for whole numbers of 400 digits


def _shown(value: Any, length: int = 80) -> str:
    """Return a value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _some(names: Iterable[Any]) -> str:
    """Return the first names for a message, and how many there are more."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more
