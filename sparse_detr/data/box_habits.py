"""Find habits of labelling that training cannot learn from: doubled boxes, boxes of the whole image, doubled names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator

import numpy as np

from sparse_detr.data.annotations import CocoFile, boxes_per_class, targets_by_image
from sparse_detr.data.findings import FaultKind, Finding

_SAME_IOU = 0.95  # two boxes of one object, drawn twice
_WHOLE = 0.99  # of the image's width and of its height
_WHOLE_SHARE = 0.1
_EMPTY_SHARE = 0.5
_MOST_BOXES = 2000  # of an image that are compared with each other
_RATIO = 100
_FEW = 10


def check_habits(coco: CocoFile, unusable: Collection[str], *, for_validation: bool) -> list[Finding]:
    """Return what is unusual about the boxes and classes of a data set."""
    by_image = targets_by_image(coco, unusable)
    return [
        *_check_names(coco),
        *_check_doubled(coco, by_image),
        *_check_whole(coco, coco.is_target(unusable)),
        *([] if for_validation else _check_balance(coco, boxes_per_class(coco, unusable))),
        *_check_empty(coco, by_image),
    ]


def _check_names(coco: CocoFile) -> list[Finding]:
    """Find class names that differ in case, spaces, hyphens or a plural s only."""
    groups = defaultdict(set)
    for name in coco.class_names.values():
        groups[re.sub(r"[^\w]|_", "", name.lower()).removesuffix("s")].add(name)
    alike = [" / ".join(sorted(names)) for names in groups.values() if len(names) > 1]
    message = "groups of class names mean the same, as it seems; give each class one name"
    return FaultKind("similar-class-names", message, "warning").findings(alike)


def _check_doubled(coco: CocoFile, by_image: dict[int, list[int]]) -> list[Finding]:
    """Find boxes of an image that are the same, or nearly, but not in all fields: `duplicate-box` finds those."""
    twice, conflicting = [], []
    for image_id, indices in by_image.items():
        for first, second in _same_boxes(coco.boxes[indices]):
            a, b = (coco.sound_annotations[indices[index]] for index in (first, second))
            where = f"{coco.sound_images[image_id]['file_name']}: annotations {a['id']} and {b['id']}"
            if a["category_id"] != b["category_id"]:
                conflicting.append(f"{where}, {' / '.join(coco.class_names[x['category_id']] for x in (a, b))}")
            elif a["bbox"] != b["bbox"]:
                twice.append(where)
    return [
        *FaultKind(
            "conflicting-classes", "pairs of boxes are the same but have two classes; keep the right one", "warning"
        ).findings(conflicting),
        *FaultKind(
            "object-boxed-twice", f"pairs of boxes of a class overlap by {_SAME_IOU:.0%} or more; keep one", "warning"
        ).findings(twice),
    ]


def _same_boxes(boxes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Return the pairs of (T, 4) boxes x, y, width, height that overlap nearly fully."""
    if not 1 < len(boxes) <= _MOST_BOXES:
        return
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    sides = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    common = sides.clip(min=0).prod(-1)
    areas = boxes[:, 2:].prod(-1)
    found = np.triu(common >= _SAME_IOU * (areas[:, None] + areas - common), k=1)
    yield from zip(*(axis.tolist() for axis in found.nonzero()))


def _check_whole(coco: CocoFile, targets: np.ndarray) -> list[Finding]:
    images = [coco.sound_images[item["image_id"]] for item in coco.sound_annotations]
    size = np.array([[image["width"], image["height"]] for image in images], dtype=np.float64).reshape(-1, 2)
    whole = targets & (coco.boxes[:, 2:] >= _WHOLE * size).all(axis=1)
    if whole.sum() < _WHOLE_SHARE * max(targets.sum(), 1):
        return []
    message = "boxes are as large as their image, as of labels for classification; draw the box of each object"
    names = [images[index]["file_name"] for index in whole.nonzero()[0]]
    return FaultKind("whole-image-box", message, "warning").findings(names)


def _check_balance(coco: CocoFile, counts: Counter[int]) -> list[Finding]:
    if len(counts) < 2:
        return []
    largest = max(counts, key=lambda number: counts[number])
    few = [number for number in counts if counts[number] * _RATIO < counts[largest]]
    rare = [number for number in counts if counts[number] < _FEW and number not in few]
    most = f"{counts[largest]} of {coco.class_names[largest]!r}"
    return [
        *FaultKind(
            "class-imbalance",
            f"classes have less than a {_RATIO}th of the boxes of the largest ({most}); add images of them",
            "warning",
        ).findings([f"{coco.class_names[number]}: {counts[number]}" for number in few]),
        *FaultKind("rare-class", f"classes have fewer than {_FEW} boxes; their scores will vary much", "note").findings(
            [f"{coco.class_names[number]}: {counts[number]}" for number in rare]
        ),
    ]


def _check_empty(coco: CocoFile, by_image: dict[int, list[int]]) -> list[Finding]:
    empty = [image["file_name"] for number, image in coco.sound_images.items() if number not in by_image]
    if not by_image or len(empty) <= _EMPTY_SHARE * len(coco.sound_images):
        return []
    message = f"of {len(coco.sound_images)} images have no box; if they show objects, label them"
    return FaultKind("mostly-empty", message, "warning").findings(empty)
