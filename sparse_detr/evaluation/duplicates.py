"""Detections of an object that another detection has found already."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_IOU = 0.7
"""The IoU above which the worse of two detections of a class is dropped."""


def suppress_duplicates(detections: Sequence[dict[str, Any]], max_iou: float = MAX_IOU) -> list[dict[str, Any]]:
    """Drop COCO results whose IoU with a better one of the same image and class is above `max_iou`.

    The others keep their order.
    """
    import torch
    from torchvision.ops import batched_nms, box_convert

    of_image: dict[Any, list[int]] = {}
    for number, detection in enumerate(detections):
        of_image.setdefault(detection["image_id"], []).append(number)
    kept: list[int] = []
    for numbers in of_image.values():  # one call an image: torchvision walks over all boxes once a class
        rows = [detections[number] for number in numbers]
        boxes = box_convert(torch.tensor([row["bbox"] for row in rows], dtype=torch.float64), "xywh", "xyxy")
        scores = torch.tensor([row["score"] for row in rows], dtype=torch.float64)
        classes = torch.tensor([row["category_id"] for row in rows])
        kept += [numbers[place] for place in batched_nms(boxes, scores, classes, max_iou).tolist()]
    return [detections[number] for number in sorted(kept)]
