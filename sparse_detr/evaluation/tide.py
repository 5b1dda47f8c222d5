"""TIDE's classes of errors, and COCO's matches, from hotcoco."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sparse_detr.errors import UserError
from sparse_detr.evaluation.coco import evaluate_boxes, why_not_hotcoco


@dataclass(frozen=True)
class Tide:
    """What hotcoco says of a set of detections.

    Args:
        counts: number of errors of each of TIDE's classes.
        delta_ap: the AP, in [0, 1], that each of them costs at the IoU threshold.
        found: ids of the annotations that are matched.
    """

    counts: dict[str, int]
    delta_ap: dict[str, float]
    found: set[int]


def tide_errors(
    truth: dict[str, Any], detections: list[dict[str, Any]], *, iou_threshold: float = 0.5, limit: int = 100
) -> Tide:
    """Return TIDE's errors (Bolya et al., ECCV 2020) of detections.

    Args:
        truth: content of a COCO file.
        detections: at least one COCO result: `image_id`, `category_id`, `bbox` as x, y, width, height, `score`.
        iou_threshold: IoU of a match.
        limit: number of detections of a class in an image that count.

    Raises:
        UserError: hotcoco cannot be used; says why.
    """
    if problem := why_not_hotcoco(truth):
        raise UserError(f"TIDE's errors come from hotcoco, which cannot be used: {problem}")
    evaluated = evaluate_boxes(truth, detections, [limit], iou_thresholds=[iou_threshold])
    errors = evaluated.tide_errors(pos_thr=iou_threshold)
    status = evaluated.image_diagnostics(iou_thr=iou_threshold)["gt_status"]
    found = {number for number, value in status.items() if value == "matched"}
    return Tide(dict(errors["counts"]), dict(errors["delta_ap"]), found)
