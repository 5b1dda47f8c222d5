"""Blame every missed object on one stage of the detector.

A true object is *found* if a detection of its class is matched with it as COCO matches: the detections of a class, best
first, each take the free object of that class with the highest IoU, if it is at least the threshold. Every other object
is missed, and the first of these that is true of it is to blame:

1. `not selected`: no token on it is selected, so that no encoder layer looked at it (`token_recall` says which tokens
   lie on an object). Never where every token is selected.
2. `not proposed`: no query starts on it, and no final box fits it. A query starts on an object if its first reference,
   the point or the centre of the box, lies in the object's box. Where all queries of a model start at one point (DETR),
   this cannot be told and is never blamed.
3. `beaten`: a final box fits it and is of its class, but another object took that detection, or it is not among those
   that count: its score is below the threshold, or too many others are better.
4. `misclassified`: final boxes fit it, each with another class as its best.
5. `badly localised`: a query started on it, or that cannot be told, but no final box fits it.

A box *fits* with an IoU of at least the threshold, after it is clipped to the image. Final boxes are those of all
queries of the last decoder layer, whatever their scores. Tokens that are only pooled (PnP-DETR) are not selected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

FOUND, NOT_SELECTED, NOT_PROPOSED = "found", "not selected", "not proposed"
BEATEN, MISCLASSIFIED, BADLY_LOCALISED = "beaten", "misclassified", "badly localised"
MISSES = (NOT_SELECTED, NOT_PROPOSED, BEATEN, MISCLASSIFIED, BADLY_LOCALISED)
"""The blames, in the order in which they are asked."""
VERDICTS = (FOUND, *MISSES)
TAKEN, LOW_SCORE = "taken by another object", "score too low"
"""Why a box was beaten."""

TIDE_MISSES = ("Cls", "Loc", "Miss")
"""TIDE's classes of an object that is not found."""
TIDE_BACKGROUND = 0.1
"""IoU from which TIDE says that a detection is of an object."""


@dataclass(frozen=True, eq=False)
class LabeledBoxes:
    """Boxes of one image with classes.

    Args:
        boxes: (n, 4) xyxy in pixels of the image.
        labels: (n,) long.
        scores: (n,); None for true boxes.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True)
class Verdict:
    """What became of one true object.

    Args:
        verdict: one of `VERDICTS`.
        detail: why it was beaten; else "".
        tide: TIDE's class of a miss, one of `TIDE_MISSES`; "" for a found object.
        best_iou: the highest IoU of a final box with it; 0 without boxes.
        best_label: the best class of that box; None without boxes.
    """

    verdict: str
    detail: str
    tide: str
    best_iou: float
    best_label: int | None


def judge(
    truth: LabeledBoxes,
    detections: LabeledBoxes,
    final: LabeledBoxes,
    *,
    selected: Tensor,
    proposed: Tensor | None,
    iou_threshold: float = 0.5,
) -> list[Verdict]:
    """Return a verdict for every true object of one image.

    Args:
        truth: (T,) true objects, without crowds.
        detections: (D,) the detections that count, see `counted`.
        final: (Q,) the boxes of all queries with their best class.
        selected: (T,) bool, whether a selected token lies on the object.
        proposed: (T,) bool, whether a query starts on the object; None if that cannot be told.
        iou_threshold: above 0, at most 1.
    """
    overlap = _iou(detections.boxes, truth.boxes)
    matched = match(overlap, detections.labels, truth.labels, iou_threshold)
    tide = _tide_misses(overlap, detections.labels, truth.labels, matched, iou_threshold)
    overlap_final = _iou(final.boxes, truth.boxes)
    fits = overlap_final >= iou_threshold
    same = detections.labels[:, None] == truth.labels
    evidence = {
        "found": matched >= 0,
        "selected": selected,
        "proposed": torch.ones_like(selected) if proposed is None else proposed,
        "fits": fits.any(0),
        "right": (fits & (final.labels[:, None] == truth.labels)).any(0),
        "taken": ((overlap >= iou_threshold) & same).any(0),
    }
    rows = zip(*(values.tolist() for values in evidence.values()), strict=True)
    blames = [_blame(**dict(zip(evidence, row, strict=True))) for row in rows]
    if not len(final.boxes):
        return [Verdict(*blame, of_tide, 0.0, None) for blame, of_tide in zip(blames, tide, strict=True)]
    best = overlap_final.max(0)
    rest = zip(tide, best.values.tolist(), final.labels[best.indices].tolist(), strict=True)
    return [Verdict(*blame, *facts) for blame, facts in zip(blames, rest, strict=True)]


def _blame(*, found: bool, selected: bool, proposed: bool, fits: bool, right: bool, taken: bool) -> tuple[str, str]:
    """Return the verdict on one object, and its detail."""
    if found:
        return FOUND, ""
    if not selected:
        return NOT_SELECTED, ""
    if not (proposed or fits):
        return NOT_PROPOSED, ""
    if taken:
        return BEATEN, TAKEN
    if right:
        return BEATEN, LOW_SCORE
    return (MISCLASSIFIED, "") if fits else (BADLY_LOCALISED, "")


def counted(detections: LabeledBoxes, *, score_threshold: float = 0.0, limit: int = 100) -> LabeledBoxes:
    """Return the detections that count, best first: those from the threshold up, at most `limit` of a class.

    Args:
        detections: of one image, with scores.
        score_threshold: lowest score that counts.
        limit: COCO's is 100; the evaluation has more where an image has more boxes, see `config.limits`.
    """
    assert detections.scores is not None
    order = detections.scores.argsort(descending=True, stable=True)
    order = order[detections.scores[order] >= score_threshold]
    labels = detections.labels[order]
    rank = torch.tril(labels[:, None] == labels, diagonal=-1).sum(1)  # better detections of the same class
    order = order[rank < limit]
    return LabeledBoxes(detections.boxes[order], detections.labels[order], detections.scores[order])


def match(overlap: Tensor, labels: Tensor, truth_labels: Tensor, iou_threshold: float) -> Tensor:
    """Match detections with true objects as COCO does: one by one, best first.

    Args:
        overlap: (D, T) IoU of detections, best first, with true objects.
        labels: (D,) classes of the detections.
        truth_labels: (T,) classes of the objects.
        iou_threshold: lowest IoU of a match.

    Returns:
        (T,) long: the detection that every object is matched with, -1 for none.
    """
    least = min(iou_threshold, 1 - 1e-10)  # as COCO's code, so that a box may equal another up to rounding
    matched = torch.full_like(truth_labels, -1)
    candidates = (overlap >= least) & (labels[:, None] == truth_labels)
    for detection in candidates.any(1).nonzero().flatten().tolist():
        free = torch.where(candidates[detection] & (matched < 0), overlap[detection], -1.0)
        best = free.amax()
        if best >= 0:
            matched[(free == best).nonzero()[-1]] = detection  # of equal ones the last, as COCO's code
    return matched


def starts_on(reference_points: Tensor, boxes: Tensor) -> Tensor | None:
    """Return (T,) bool: whether a query starts on the object; None if all queries start at one point.

    Args:
        reference_points: (Q, 2) points or (Q, 4) boxes cxcywh of the queries of one image.
        boxes: (T, 4) true boxes, cxcywh in the same units.
    """
    points = reference_points[:, :2]
    if len(points) > 1 and bool((points == points[0]).all()):
        return None
    distance = (points[:, None] - boxes[:, :2]).abs()
    return (distance <= boxes[:, 2:] / 2).all(-1).any(0)


def _tide_misses(
    overlap: Tensor, labels: Tensor, truth_labels: Tensor, matched: Tensor, iou_threshold: float
) -> list[str]:
    """Return TIDE's class of every object that is not found (Bolya et al., ECCV 2020, section 2), "" for the others.

    A detection without a match is a `Loc` error of the object of its class that it overlaps most, if the IoU is between
    0.1 and the threshold; else a `Cls` error of the object of another class that it overlaps most, if that IoU reaches
    the threshold. An object with such errors has the class of the best detection among them; one without is a `Miss`.
    """
    found = ["Miss" if missed else "" for missed in (matched < 0).tolist()]
    if not len(labels) or not len(truth_labels):
        return found
    same = labels[:, None] == truth_labels
    best_same, of_same = torch.where(same, overlap, 0).max(1)
    best_other, of_other = torch.where(same, 0, overlap).max(1)
    is_loc = (best_same >= TIDE_BACKGROUND) & (best_same <= iou_threshold)
    is_cls = ~is_loc & (best_other >= iou_threshold)
    taken = set(matched.tolist())
    rows = zip(is_loc.tolist(), is_cls.tolist(), of_same.tolist(), of_other.tolist(), strict=True)
    for detection, (loc, cls, same_object, other_object) in enumerate(rows):
        if detection in taken or not (loc or cls):
            continue
        target = same_object if loc else other_object
        if found[target] == "Miss":
            found[target] = "Loc" if loc else "Cls"
    return found


def _iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Return (n, m) IoU of xyxy boxes, in double precision."""
    return box_iou(boxes.double(), others.double())


def clip_to_image(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return xyxy boxes (n, 4) in pixels, clipped to an image of (height, width)."""
    height, width = size
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
