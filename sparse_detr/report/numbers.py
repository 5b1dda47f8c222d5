"""The numbers of a report: scores and thresholds of classes, curves, confusions, calibration, errors of images.

AP and recall are COCO's, from hotcoco, and equal pycocotools'. All else follows from the same matches: best detection
first, each with the free true box of its class with the highest IoU. Detections that lie on a crowd of their class
count neither as right nor as false.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sparse_detr.errors import UserError
from sparse_detr.evaluation.coco import BoxScores, evaluate_boxes, scores_of, why_not_hotcoco
from sparse_detr.evaluation.duplicates import MAX_IOU, suppress_duplicates
from sparse_detr.report import LIMIT

IOU = 0.5
_STEPS = np.arange(101) / 100  # equal to 0.01 ... as written; linspace's are not
_UNKNOWN_THRESHOLD = 0.5  # where no detection is right
BACKGROUND = "background"
KINDS = MISSED, FALSE, RIGHT = "missed", "false", "right"
# Places of COCO's IoU thresholds 0.50:0.05:0.95, and names of COCO's twelve scores.
_AT_50, _AT_75 = 0, 5
_SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class Matches:
    """The detections that count, best or not, and which of them are right at an IoU of 0.5.

    Args:
        places: (D,) where each stands in the list of COCO results.
        scores: (D,) in [0, 1].
        labels: (D,) class indices.
        image_ids: (D,).
        objects: (D,) id of the annotation that each has found; 0 for a false one.
        num_boxes: (K,) true boxes of every class, without crowds.
    """

    places: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image_ids: np.ndarray
    objects: np.ndarray
    num_boxes: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Return the mask (D,) of the detections that found a true box."""
        return self.objects > 0


@dataclass(frozen=True)
class WorkingPoint:
    """What a score threshold gives: detections with that score or a higher one count."""

    threshold: float
    precision: float
    recall: float
    f1: float


def best_point(scores: np.ndarray, right: np.ndarray, num_boxes: int) -> WorkingPoint | None:
    """Return the threshold with the highest F1, of several the highest threshold; None if no detection is right.

    Args:
        scores: (D,).
        right: (D,) bool.
        num_boxes: number of true boxes.
    """
    if not right.any() or not num_boxes:
        return None
    order = np.argsort(-scores, kind="stable")
    ordered, found = scores[order], np.cumsum(right[order])
    shown = np.arange(1, len(order) + 1)
    is_last = np.append(ordered[1:] != ordered[:-1], True)  # a threshold keeps all detections of one score
    f1 = np.where(is_last, 2 * found / (shown + num_boxes), -1.0)
    best = int(f1.argmax())
    precision, recall = found[best] / shown[best], found[best] / num_boxes
    return WorkingPoint(float(ordered[best]), float(precision), float(recall), float(f1[best]))


def f1_curve(scores: np.ndarray, right: np.ndarray, num_boxes: int) -> np.ndarray:
    """Return the F1 at the thresholds 0, 0.01 ... 1, (101,)."""
    order = np.argsort(scores, kind="stable")
    first = np.searchsorted(scores[order], _STEPS, side="left")
    found = np.append(np.cumsum(right[order][::-1])[::-1], 0)[first]
    return 2 * found / np.maximum(len(scores) - first + num_boxes, 1)


def match(evaluated: Any, truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]]) -> Matches:
    """Return the matches of what `evaluate_boxes` returned at an IoU of 0.5."""
    found = evaluated.image_diagnostics(iou_thr=IOU)
    indices = _indices(truth)
    ids = np.array(sorted(found["dt_status"]), dtype=np.int64)  # hotcoco numbers the detections from 1
    rows = [detections[number - 1] for number in ids.tolist()]
    boxes = [indices[item["category_id"]] for item in truth["annotations"] if not item["iscrowd"]]
    return Matches(
        places=ids - 1,
        scores=np.array([row["score"] for row in rows], dtype=np.float64),
        labels=np.array([indices[row["category_id"]] for row in rows], dtype=np.int64),
        image_ids=np.array([row["image_id"] for row in rows], dtype=np.int64),
        objects=np.array([found["dt_match"].get(number, 0) for number in ids.tolist()], dtype=np.int64),
        num_boxes=np.bincount(np.array(boxes, dtype=np.int64), minlength=len(indices)),
    )


def _indices(truth: Mapping[str, Any]) -> dict[int, int]:
    return {category["id"]: index for index, category in enumerate(truth["categories"])}


def report_numbers(
    truth: dict[str, Any], detections: list[dict[str, Any]], *, limit: int = LIMIT, worst: int = 9
) -> dict[str, Any]:
    """Return all numbers of a report, fit for JSON; None where there is no number.

    AP and AR are in percent, other shares in [0, 1].

    Args:
        truth: content of a COCO file with ascending ids of categories, as `data.records.ground_truth` returns it.
        detections: at least one COCO result, as `read_results` returns them.
        limit: how many detections of a class in an image count.
        worst: how many of the images with most errors to name.

    Raises:
        UserError: hotcoco cannot be used; says why.
    """
    if problem := why_not_hotcoco(truth):
        raise UserError(f"the numbers of a report come from hotcoco, which cannot be used: {problem}")
    limits = [min(1, limit), min(10, limit), limit]
    evaluated = evaluate_boxes(truth, detections, limits)
    scores, matches = scores_of(evaluated), match(evaluated, truth, detections)
    every = best_point(matches.scores, matches.right, int(matches.num_boxes.sum()))
    points = [best_point(*_of_class(matches, index)) for index in range(len(truth["categories"]))]
    common = _UNKNOWN_THRESHOLD if every is None else every.threshold
    thresholds = np.array([common if point is None else point.threshold for point in points])
    shown = matches.scores >= thresholds[matches.labels]
    tide = evaluated.tide_errors(pos_thr=IOU)
    return {
        "images": len(truth["images"]),
        "true_boxes": int(matches.num_boxes.sum()),
        "crowds": len(truth["annotations"]) - int(matches.num_boxes.sum()),
        "detections": len(detections),
        "iou": IOU,
        "max_detections": limit,
        "scores": _scores(scores),
        "all": None if every is None else asdict(every),
        "classes": _class_rows(truth, detections, scores, matches, points),
        "confusion": _confusion(truth, detections, matches, shown),
        "curves": _curves(scores, matches),
        "calibration": _calibration(evaluated),
        "tide": {name: dict(tide[name]) for name in ("counts", "delta_ap")},
        "duplicates": _duplicates(truth, detections, scores, limits),
        "worst": _worst(truth, detections, matches, shown, worst),
    }


def _scores(scores: BoxScores) -> dict[str, float | None]:
    """Return COCO's twelve scores, and the recall at an IoU of 0.5; average recalls in percent too."""
    named = {name: _percent(value) for name, value in zip(_SCORES, scores.stats, strict=True)}
    return {**named, "recall": _known(_mean(scores.eval["recall"][_AT_50, :, 0, -1]))}


def _of_class(matches: Matches, index: int) -> tuple[np.ndarray, np.ndarray, int]:
    mine = matches.labels == index
    return matches.scores[mine], matches.right[mine], int(matches.num_boxes[index])


def _class_rows(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    scores: BoxScores,
    matches: Matches,
    points: Sequence[WorkingPoint | None],
) -> list[dict[str, Any]]:
    indices = _indices(truth)
    given = np.bincount([indices[row["category_id"]] for row in detections], minlength=len(indices))
    precision, recall = scores.eval["precision"][..., 0, -1], scores.eval["recall"][..., 0, -1]
    rows = []
    for category, index in zip(truth["categories"], range(len(indices)), strict=True):
        point = points[index]
        rows.append(
            {
                "name": category["name"],
                "category_id": category["id"],
                "true_boxes": int(matches.num_boxes[index]),
                "detections": int(given[index]),
                "AP": _percent(_mean(precision[:, :, index])),
                "AP50": _percent(_mean(precision[_AT_50, :, index])),
                "AP75": _percent(_mean(precision[_AT_75, :, index])),
                "recall": _known(recall[_AT_50, index]),
                "threshold": None if point is None else point.threshold,
                "precision_there": None if point is None else point.precision,
                "recall_there": None if point is None else point.recall,
                "f1_there": None if point is None else point.f1,
            }
        )
    return rows


def _mean(values: np.ndarray) -> float:
    """Return the mean of the values that exist, as COCO takes it; -1 without any."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _percent(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else 100 * float(value)


def _known(value: float) -> float | None:
    return None if value < 0 or math.isnan(value) else float(value)


def _confusion(
    truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], matches: Matches, shown: np.ndarray
) -> dict[str, Any]:
    """Count true classes (rows) seen as classes (columns), whatever the class of the match; the last is no object.

    hotcoco counts a detection on a crowd as false; so crowds, and the detections that lie on them, are left out.
    """
    names = [category["name"] for category in truth["categories"]]
    counted = [detections[place] for place in matches.places[shown].tolist()]
    if not counted:
        matrix = np.zeros((len(names) + 1, len(names) + 1), dtype=np.int64)
        matrix[:-1, -1] = matches.num_boxes
    else:
        boxes = [item for item in truth["annotations"] if not item["iscrowd"]]
        evaluated = evaluate_boxes({**truth, "annotations": boxes}, counted, [1, 10, LIMIT])
        matrix = evaluated.confusion_matrix(iou_thr=IOU, max_det=len(counted))["matrix"]
    return {"names": [*names, BACKGROUND], "matrix": matrix.astype(int).tolist()}


def _curves(scores: BoxScores, matches: Matches) -> dict[str, Any]:
    """Return COCO's precision at an IoU of 0.5 over recall, and F1 over the threshold; None for empty classes."""
    precision = scores.eval["precision"][_AT_50, :, :, 0, -1]
    has_boxes = matches.num_boxes > 0
    f1 = [f1_curve(*_of_class(matches, index)) for index in range(len(has_boxes))]
    return {
        "steps": _rounded(_STEPS),
        "precision": [_rounded(precision[:, i]) if known else None for i, known in enumerate(has_boxes)],
        "f1": [_rounded(f1[i]) if known else None for i, known in enumerate(has_boxes)],
        "f1_all": _rounded(f1_curve(matches.scores, matches.right, int(matches.num_boxes.sum()))),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def _calibration(evaluated: Any) -> dict[str, Any]:
    """Return how the scores of detections agree with the share of them that is right, in ten bins of the score."""
    found = evaluated.calibration(n_bins=10, iou_threshold=IOU)
    bins = [
        {
            "from": one["bin_lower"],
            "to": one["bin_upper"],
            "detections": one["count"],
            "mean_score": one["avg_confidence"] if one["count"] else None,
            "right": one["avg_accuracy"] if one["count"] else None,
        }
        for one in found["bins"]
    ]
    return {"expected_error": found["ece"], "largest_error": found["mce"], "bins": bins}


def _duplicates(
    truth: dict[str, Any], detections: list[dict[str, Any]], scores: BoxScores, limits: list[int]
) -> dict[str, Any]:
    """Return AP and AP50 after suppression of duplicates, and how much higher they are."""
    left = suppress_duplicates(detections)
    after = scores if len(left) == len(detections) else scores_of(evaluate_boxes(truth, left, limits))
    found: dict[str, Any] = {"max_iou": MAX_IOU, "suppressed": len(detections) - len(left)}
    for name, place in (("AP", 0), ("AP50", 1)):
        before, then = _percent(scores.stats[place]), _percent(after.stats[place])
        found[name] = then
        found[f"{name}_cost"] = None if before is None or then is None else then - before
    return found


def _worst(
    truth: Mapping[str, Any],
    detections: Sequence[Mapping[str, Any]],
    matches: Matches,
    shown: np.ndarray,
    number: int,
) -> list[dict[str, Any]]:
    """Return the images with most errors at the thresholds of their classes, of equals those with less that is right.

    Returns:
        A dict an image with at least one error: id, file name, width, height, the numbers of `missed` true boxes, and
        of `false` and `right` detections; `boxes` are these: `kind` (missed, false, right), `class`, `bbox` (x, y,
        width, height in pixels), `score` of a detection.
    """
    right, false = shown & matches.right, shown & ~matches.right
    found = set(matches.objects[right].tolist())
    missed = [item for item in truth["annotations"] if not item["iscrowd"] and item["id"] not in found]
    counts: dict[int, dict[str, int]] = {image["id"]: dict.fromkeys(KINDS, 0) for image in truth["images"]}
    for item in missed:
        counts[item["image_id"]][MISSED] += 1
    for kind, mask in ((FALSE, false), (RIGHT, right)):
        for image_id in matches.image_ids[mask].tolist():
            counts[image_id][kind] += 1

    def rank(entry: tuple[int, dict[str, int]]) -> tuple[int, int, int]:
        image_id, count = entry
        return -count[MISSED] - count[FALSE], count[RIGHT], image_id

    chosen = [entry for entry in sorted(counts.items(), key=rank)[:number] if rank(entry)[0] < 0]
    names = {category["id"]: category["name"] for category in truth["categories"]}
    boxes: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id, _ in chosen}

    def add(kind: str, row: Mapping[str, Any]) -> None:
        if row["image_id"] in boxes:
            score = {"score": row["score"]} if "score" in row else {}
            box = {"kind": kind, "class": names[row["category_id"]], "bbox": list(row["bbox"]), **score}
            boxes[row["image_id"]].append(box)

    for item in missed:
        add(MISSED, item)
    for kind, mask in ((FALSE, false), (RIGHT, right)):
        for place in matches.places[mask].tolist():
            add(kind, detections[place])
    files = {image["id"]: {key: image[key] for key in ("file_name", "width", "height")} for image in truth["images"]}
    return [{"image_id": image_id, **files[image_id], **count, "boxes": boxes[image_id]} for image_id, count in chosen]
