"""What a report says in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparse_detr.analysis.tables import markdown_table, threshold_text

LEAST_COST = 0.5
"""AP50 in points from which on duplicates are worth a sentence."""
_LEAST_CONFUSIONS, _LEAST_CALIBRATED = 3, 30  # fewer may be chance


def sentences(numbers: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know first, from the `report_numbers`.

    More of the numbers are read where there are any: `left_out`, how many true boxes cannot be used; `of_run`, whether
    a setting of the run can be a remedy; `data`, the name of the run's data; `other_data`, names of its other
    evaluation data; and `replaces`, the name of the data that an earlier report in the same folder was on.
    """
    found = [of_data(numbers), _summary(numbers), _working_point(numbers), _weakest(numbers), _confused(numbers)]
    found += [_calibration(numbers), duplicates(numbers), _empty_classes(numbers), _left_out(numbers)]
    return [sentence for sentence in found if sentence]


def of_data(numbers: Mapping[str, Any]) -> str:
    """Return which data the report is on, where a reader may think of others; else ""."""
    found = []
    if others := numbers.get("other_data"):
        found.append(f"the config's other evaluation data are not in it: {', '.join(others)}")
    if replaced := numbers.get("replaces"):
        found.append(f"it replaces a report on {replaced}")
    return "; ".join([f"this report is on {numbers['data']}", *found]) if found else ""


def _summary(numbers: Mapping[str, Any]) -> str:
    scores = numbers["scores"]
    return (
        f"AP {number(scores['AP'])}, AP50 {number(scores['AP50'])}, AP75 {number(scores['AP75'])}: "
        f"{_count(numbers['detections'], 'detection')} and {_count(numbers['true_boxes'], 'true box')} of "
        f"{_count(len(numbers['classes']), 'class')} in {_count(numbers['images'], 'image')}"
    )


def _count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    plural = f"{noun}es" if noun.endswith(("s", "x")) else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _working_point(numbers: Mapping[str, Any]) -> str:
    best = numbers["all"]
    if best is None:
        return "no detection is right at an IoU of 0.5, so no score threshold is better than another"
    return (
        f"with one threshold for all classes, {threshold_text(best['threshold'])} gives the highest F1, "
        f"{best['f1']:.2f}: {best['precision']:.0%} of the detections are right, {best['recall']:.0%} of the true "
        "boxes are found"
    )


def _weakest(numbers: Mapping[str, Any]) -> str:
    known = [row for row in numbers["classes"] if row["AP"] is not None]
    if len(known) < 2:
        return ""
    worst = min(known, key=lambda row: row["AP"])
    boxes = _count(worst["true_boxes"], "true box")
    return f"the class with the lowest AP is {worst['name']}: {number(worst['AP'])}, {boxes}"


def _confused(numbers: Mapping[str, Any]) -> str:
    names, matrix = numbers["confusion"]["names"][:-1], numbers["confusion"]["matrix"]
    pairs = [(matrix[i][j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    most, true, seen = max(pairs, key=lambda pair: pair[0], default=(0, 0, 0))
    if most < _LEAST_CONFUSIONS:
        return ""
    return f"the most frequent confusion is {names[true]} seen as {names[seen]}, {most} times of {sum(matrix[true])}"


def _calibration(numbers: Mapping[str, Any]) -> str:
    """Say whether scores are too high or too low, of the detections that a user would look at."""
    best = numbers["all"]
    if best is None:
        return ""
    bins = [one for one in numbers["calibration"]["bins"] if one["detections"] and one["from"] >= 0.5]
    total = sum(one["detections"] for one in bins)
    if not total:
        return "no detection has a score of 0.5 or more, as after a short training; scores still rank the detections"
    if total < _LEAST_CALIBRATED:
        return ""
    score, right = (sum(one[name] * one["detections"] for one in bins) / total for name in ("mean_score", "right"))
    if abs(score - right) < 0.05:
        return f"scores of 0.5 or more can be read as probabilities: {score:.0%} on average, {right:.0%} are right"
    word = "high" if score > right else "low"
    return f"scores of 0.5 or more are too {word}: {score:.0%} on average, but {right:.0%} of the detections are right"


def duplicates(numbers: Mapping[str, Any]) -> str:
    """Return what duplicates cost and what helps; "" where they cost little."""
    found = numbers["duplicates"]
    if found["AP50_cost"] is None or found["AP50_cost"] < LEAST_COST:
        return ""
    remedy = (
        f"train longer, or suppress them with model.postprocess.suppress_duplicates={found['max_iou']:g} (yaml: "
        f"TEST.SUPPRESS_DUPLICATES {found['max_iou']:g})"
        if numbers.get("of_run")
        else "train longer, or suppress them after the model"
    )
    return (
        f"duplicates cost {found['AP50_cost']:.1f} AP50 and {found['AP_cost']:.1f} AP: without detections that overlap "
        f"a better one of their class (IoU above {found['max_iou']:g}), AP50 is {found['AP50']:.1f} and AP "
        f"{found['AP']:.1f}; {remedy}"
    )


def _empty_classes(numbers: Mapping[str, Any]) -> str:
    empty = [row["name"] for row in numbers["classes"] if not row["true_boxes"]]
    if not empty:
        return ""
    if len(empty) == 1:
        return f"{empty[0]} has no true boxes here, so it has no scores"
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    return f"{', '.join(empty[:5])}{more} have no true boxes here, so they have no scores"


def _left_out(numbers: Mapping[str, Any]) -> str:
    count = numbers.get("left_out", 0)
    if not count:
        return ""
    verb = "is" if count == 1 else "are"
    return (
        f"{_count(count, 'true box')} cannot be used and {verb} left out, so the AP can differ from that of the whole "
        "file; `sparse-detr check-data` says why"
    )


COLUMNS = {
    "name": "class",
    "true_boxes": "true boxes",
    "detections": "detections",
    "AP": "AP",
    "AP50": "AP50",
    "AP75": "AP75",
    "recall": "recall",
    "threshold": "threshold",
    "precision_there": "its precision",
    "recall_there": "its recall",
    "f1_there": "its F1",
}
"""Columns of the table of classes, and their titles."""


def class_rows(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of a row a class, then those of all classes together."""
    scores, best = numbers["scores"], numbers["all"] or {}
    total = {
        "name": "all",
        "true_boxes": numbers["true_boxes"],
        "detections": numbers["detections"],
        **{name: scores[name] for name in ("AP", "AP50", "AP75", "recall")},
        "threshold": best.get("threshold"),
        **{f"{name}_there": best.get(name) for name in ("precision", "recall", "f1")},
    }
    return [[_cell(name, row[name]) for name in COLUMNS] for row in [*numbers["classes"], total]]


def table(numbers: Mapping[str, Any]) -> str:
    """Return the table of classes in Markdown."""
    return markdown_table(COLUMNS.values(), class_rows(numbers))


def _cell(name: str, value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    if name.startswith("AP"):
        return number(value)
    if name == "threshold":
        return threshold_text(value)
    return "-" if value is None else f"{value:.3f}"


def number(value: float | None) -> str:
    """Return an AP in percent as text."""
    return "-" if value is None else f"{value:.1f}"
