"""What training and evaluation get of a COCO file: the fields that a box detector reads, and no others."""

import codecs
import math
import os
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from sparse_detr.data.annotations import CocoFile

# Beyond it pycocotools leaves a box out of every score.
_MAX_AREA = 1e10


def training_records(coco: CocoFile, images: str) -> list[dict[str, Any]]:
    """Return Detectron2's records by image id, with the boxes that have area inside their image; crowds stay marked.

    Args:
        images: the folder that the file names refer to.
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
    """Return the same boxes as a COCO file for pycocotools, which takes no other values than COCO's own."""
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
    if any(box["id"] == 0 for box in boxes):  # pycocotools takes 0 for a box that no detection was matched with
        boxes = [{**box, "id": number} for number, box in enumerate(boxes, start=1)]
    return {
        "images": [
            {key: image[key] for key in ("id", "file_name", "height", "width")} for image in coco.sound_images.values()
        ],
        "annotations": boxes,
        "categories": [{"id": number, "name": name} for number, name in coco.class_names.items()],
    }


def is_fit_for_evaluation(coco: CocoFile, truth: dict[str, Any]) -> bool:
    """Return whether pycocotools finds in the file as it is what it finds in `truth`, its `ground_truth`."""
    return (
        not coco.boxes_from_masks
        and _is_plain_utf8(coco.path.read_bytes())
        and len(truth["annotations"]) == len(coco.annotations)
        and all(_same(item, clean) for item, clean in zip(coco.annotations, truth["annotations"]))
    )


def _is_plain_utf8(content: bytes) -> bool:
    """Return whether a program that knows no other encoding reads it: not UTF-16, no halves of characters."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return not content.startswith(codecs.BOM_UTF8) and b"\0" not in content


def _same(item: dict[str, Any], clean: dict[str, Any]) -> bool:
    """Return whether an annotation says what `clean` does; the evaluation reads `score` and `ignore` too."""
    values = [item.get(key) for key in clean]
    same = values == list(clean.values()) and [type(value) for value in values[-1:]] == [int]
    return same and "score" not in item and "ignore" not in item


def _area(area: Any, box: list[float]) -> float:
    """Return the area of the object's mask if the file has it, else that of the box."""
    if isinstance(area, int | float) and not isinstance(area, bool) and 0 <= area <= _MAX_AREA:
        return area
    return float(np.clip(box[2] * box[3], 0, _MAX_AREA)) if math.isfinite(box[2] * box[3]) else _MAX_AREA
