"""Records of a COCO file for training and evaluation, with the fields that a box detector reads and no others."""

import codecs
import math
import os
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from sparse_detr.data.annotations import CocoFile

# pycocotools leaves larger boxes out of every score.
_MAX_AREA = 1e10


def training_records(coco: CocoFile, images: str) -> list[dict[str, Any]]:
    """Return Detectron2's records in the order of image ids, without boxes that have no area inside their image.

    Crowds stay, marked as such.

    Args:
        images: the folder that the file names start from.
    """
    indices = {number: index for index, number in enumerate(coco.class_names)}
    records = {
        number: {
            "file_name": os.path.join(images, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": number,
            "annotations": [],
        }
        for number, image in sorted(coco.sound_images.items())
    }
    for item, crowd, usable in zip(coco.sound_annotations, coco.crowd.tolist(), coco.box_faults.usable):
        if usable:
            box = {"iscrowd": int(crowd), "bbox": item["bbox"], "category_id": indices[item["category_id"]]}
            records[item["image_id"]]["annotations"].append({**box, "bbox_mode": BoxMode.XYWH_ABS})
    return list(records.values())


def ground_truth(coco: CocoFile) -> dict[str, Any]:
    """Return the boxes as the content of a COCO file for pycocotools, which accepts only values as in COCO's files."""
    kept = zip(coco.sound_annotations, coco.boxes.tolist(), coco.crowd.tolist(), coco.box_faults.usable)
    boxes = [
        {
            "id": item["id"],
            "image_id": item["image_id"],
            "category_id": item["category_id"],
            "bbox": item["bbox"],
            "area": _area(item.get("area"), box),
            "iscrowd": int(crowd),
        }
        for item, box, crowd, usable in kept
        if usable
    ]
    if any(box["id"] <= 0 for box in boxes):  # to pycocotools, 0 means no match; hotcoco refuses ids below 0
        boxes = [{**box, "id": number} for number, box in enumerate(boxes, start=1)]
    return {
        "images": [
            {key: image[key] for key in ("id", "file_name", "height", "width")} for image in coco.sound_images.values()
        ],
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for number, name in coco.class_names.items()],
    }


def is_fit_for_evaluation(coco: CocoFile, truth: dict[str, Any]) -> bool:
    """Return whether pycocotools reads the same from the file itself as from `truth`, its `ground_truth`."""
    return (
        not coco.boxes_from_masks
        and _is_plain_utf8(coco.path.read_bytes())
        and len(truth["annotations"]) == len(coco.annotations)
        and all(_same(item, clean) for item, clean in zip(coco.annotations, truth["annotations"]))
    )


def _is_plain_utf8(content: bytes) -> bool:
    """Return whether a program that reads only UTF-8 without a byte order mark can read the content."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not content.startswith(codecs.BOM_UTF8) and b"\0" not in content


def _same(item: dict[str, Any], clean: dict[str, Any]) -> bool:
    """Return whether an annotation equals `clean` for the evaluation, which reads `score` and `ignore` too."""
    values = [item.get(key) for key in clean]
    same = values == list(clean.values()) and [type(value) for value in values[-1:]] == [int]
    return same and "score" not in item and "ignore" not in item


def _area(area: Any, box: list[float]) -> float:
    """Return the area of the object's mask if the file has it, else the area of the box."""
    if isinstance(area, int | float) and not isinstance(area, bool) and 0 <= area <= _MAX_AREA:
        return area
    return float(np.clip(box[2] * box[3], 0, _MAX_AREA)) if math.isfinite(box[2] * box[3]) else _MAX_AREA
