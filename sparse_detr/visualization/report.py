"""Pictures of a report: curves, confusion matrix and calibration as PNG, and the images with most errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_detr.analysis.tables import threshold_text
from sparse_detr.visualization.colors import Color
from sparse_detr.visualization.figures import INK, LINE_COLORS, PALE, add_legend, finish, new_figure, png_of
from sparse_detr.visualization.names import picture_names
from sparse_detr.visualization.outlines import Outline, draw_outlines, in_rows, short_name
from sparse_detr.visualization.page import Panel, compose_page

COLORS: dict[str, Color] = {"missed": (222, 28, 40), "false": (28, 92, 235), "right": (0, 148, 92)}
"""Of the boxes of an image, by kind."""
_MEANINGS = {"missed": "missed true boxes", "false": "false detections", "right": "right detections"}
_ORDER = ("right", "false", "missed")  # the last is on top
_MOST_NAMED, _MOST_NUMBERED, _MOST_IN_MATRIX = 8, 20, 40
_MOST_LABELLED, _LABEL = 20, 16  # errors of an image whose classes are written, and letters of a class


def class_names(numbers: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes for pictures; "class 4", with the category id, if the font lacks a letter."""
    rows = numbers["classes"]
    return picture_names([row["name"] for row in rows], [f"class {row['category_id']}" for row in rows])


def draw_curves(numbers: Mapping[str, Any]) -> bytes:
    """Return a PNG of precision over recall, and of F1 over the score threshold, a line a class.

    With more than 8 classes, the lines of classes are thin and grey, and their mean is drawn.

    Args:
        numbers: a report's, see `report.numbers`.
    """
    figure, axes = new_figure(11, 4.6, columns=2)
    curves, names = numbers["curves"], class_names(numbers)
    known = [index for index, row in enumerate(numbers["classes"]) if row["true_boxes"]]
    named = len(known) <= _MOST_NAMED
    legend: dict[str, Any] = {}
    for axis, kind in zip(axes, ("precision", "f1"), strict=True):
        for place, index in enumerate(known):
            style = {"color": LINE_COLORS[place], "linewidth": 1.8} if named else {"color": PALE, "linewidth": 0.6}
            [line] = axis.plot(curves["steps"], curves[kind][index], **style)
            if named:
                legend[names[index]] = line
    if not named:
        mean = np.mean([curves["precision"][index] for index in known], axis=0)
        [line] = axes[0].plot(curves["steps"], mean, color=LINE_COLORS[0], linewidth=2.4)
        legend[f"mean of {len(known)} classes"] = line
    style = {"color": INK, "linewidth": 2.4, "linestyle": "-" if not named else "--"}
    [legend["all detections together"]] = axes[1].plot(curves["steps"], curves["f1_all"], **style)
    best = ""
    if numbers["all"]:
        point = numbers["all"]["threshold"], numbers["all"]["f1"]
        axes[1].plot(*point, "o", color=INK)
        best = f": best {point[1]:.2f} at {threshold_text(point[0])}"
    titles = ("precision over recall, IoU 0.5", f"F1 over the score threshold, IoU 0.5{best}")
    for axis, title, x, y in zip(axes, titles, ("recall", "score threshold"), ("precision", "F1"), strict=True):
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel=x, ylabel=y)
        finish(axis, title)
    add_legend(figure, list(legend.values()), list(legend), "outside lower center", most=5)
    return png_of(figure)


def draw_confusion(numbers: Mapping[str, Any]) -> bytes:
    """Return a PNG of the confusion matrix: true classes are rows, coloured by the share of the row.

    What is detected where no object is, the last row, is coloured by its share of the detections of the class. Of more
    than 40 classes, those with most errors are shown, and the others together.

    Args:
        numbers: a report's, see `report.numbers`.
    """
    from matplotlib.colors import PowerNorm

    counts, names = _grouped(np.array(numbers["confusion"]["matrix"]), class_names(numbers))
    norm = PowerNorm(0.5, vmin=0, vmax=1)  # so that a confusion of a few percent can be seen
    is_object = np.arange(len(counts))[:, None] < len(counts) - 1
    of_row = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    of_column = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    side = 3.2 + min(0.75, 4.5 / len(counts) + 0.15) * len(counts)
    figure, axis = new_figure(side + 0.6, side)
    drawn = axis.imshow(np.ma.array(of_row, mask=np.broadcast_to(~is_object, counts.shape)), cmap="Blues", norm=norm)
    axis.imshow(np.ma.array(of_column, mask=np.broadcast_to(is_object, counts.shape)), cmap="Oranges", norm=norm)
    axis.axhline(len(counts) - 1.5, color=PALE, linewidth=1)
    axis.axvline(len(counts) - 1.5, color=PALE, linewidth=1)
    axis.set_xticks(range(len(counts)), [*names, "missed"], rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(counts)), [*names, "no object"], fontsize=9)
    axis.set(xlabel="detected as", ylabel="true class")
    few = len(names) <= _MOST_NUMBERED
    for row, column in np.ndindex(counts.shape):
        if counts[row, column] and (few or row != column):
            share = (of_row if is_object[row, 0] else of_column)[row, column]
            style = {"color": "white" if norm(share) > 0.6 else INK, "fontsize": 9 if few else 6}
            axis.text(column, row, counts[row, column], ha="center", va="center", **style)
    figure.colorbar(drawn, ax=axis, shrink=0.7, label="share of the true boxes of the class")
    title = "confusions at the thresholds of the classes;\nlast row: share of the detections of the class"
    axis.set_title(title, fontsize=10, loc="left")
    return png_of(figure)


def _grouped(matrix: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the matrix and the names of the classes to show: those with most errors, in their order, and the others.

    Args:
        matrix: (K + 1, K + 1); the last row and column are no object.
        names: K.
    """
    if len(names) <= _MOST_IN_MATRIX:
        return matrix, list(names)
    errors = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    chosen = sorted(np.argsort(-errors[:-1], kind="stable")[:_MOST_IN_MATRIX].tolist())
    places = np.full(len(matrix), len(chosen))
    places[chosen], places[-1] = np.arange(len(chosen)), len(chosen) + 1
    counts = np.zeros((len(chosen) + 2, len(chosen) + 2), dtype=matrix.dtype)
    np.add.at(counts, (places[:, None], places[None, :]), matrix)
    return counts, [*(names[index] for index in chosen), f"{len(names) - len(chosen)} other classes"]


def draw_calibration(numbers: Mapping[str, Any]) -> bytes:
    """Return a PNG of the share of right detections over their score, and of how many detections have such a score.

    Args:
        numbers: a report's, see `report.numbers`.
    """
    figure, (above, below) = new_figure(5.6, 5.4, rows=2)
    bins = numbers["calibration"]["bins"]
    full = [one for one in bins if one["detections"]]
    [ideal] = above.plot((0, 1), (0, 1), color=PALE, linestyle="--", linewidth=1.2)
    lefts = [one["from"] for one in full]
    widths = [one["to"] - one["from"] for one in full]
    style = {"align": "edge", "edgecolor": "white"}
    above.bar(lefts, [one["right"] for one in full], widths, color=LINE_COLORS[0], **style)
    above.plot([one["mean_score"] for one in full], [one["right"] for one in full], "o-", color=INK, markersize=4)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    above.legend([ideal], ["score = share that is right"], fontsize=8, frameon=False, loc="upper left")
    error = f"expected error {numbers['calibration']['expected_error']:.3f}" if full else "no detection counts"
    finish(above, f"calibration at IoU 0.5: {error}")
    bars = below.bar(lefts, [one["detections"] for one in full], widths, color=PALE, **style)
    below.bar_label(bars, fontsize=8)
    most = max((one["detections"] for one in full), default=1)
    below.set(xlim=(0, 1), yscale="log", ylim=(0.5, 4 * most), xlabel="score")
    below.set_yticks([], [])
    below.set_yticks([], [], minor=True)
    finish(below, "detections with such a score")
    return png_of(figure)


def worst_page(
    worst: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray], classes: Sequence[Mapping[str, Any]] = ()
) -> np.ndarray:
    """Show the images with most errors, with missed, false and right boxes.

    Where there are several classes and fewer than 20 errors in an image, the class is written above a missed box and
    below a false one.

    Args:
        worst: a report's `worst`, see `report.numbers`; at least one.
        pictures: (H, W, 3) uint8 RGB of each, by file name; they may be reduced.
        classes: a report's `classes`; without them no class is written.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    ids = {row["name"]: f"class {row['category_id']}" for row in classes}
    names = dict(zip(ids, picture_names(list(ids), list(ids.values()), length=_LABEL), strict=True))
    panels = [_panel(pictures[image["file_name"]], image, names if len(names) > 1 else {}) for image in worst]
    legend = [(COLORS[kind], f"{what} {sum(image[kind] for image in worst)}") for kind, what in _MEANINGS.items()]
    title = f"The {len(panels)} images with most errors" if len(panels) > 1 else "The image with most errors"
    return compose_page(title, "Detections from the threshold of their class on, IoU 0.5", in_rows(panels), legend)


def _panel(image: np.ndarray, errors: Mapping[str, Any], names: Mapping[str, str]) -> Panel:
    across, down = image.shape[1] / errors["width"], image.shape[0] / errors["height"]
    named = names if errors["missed"] + errors["false"] < _MOST_LABELLED else {}
    outlines = []
    for box in sorted(errors["boxes"], key=lambda box: _ORDER.index(box["kind"])):
        kind, (x, y, width, height) = box["kind"], box["bbox"]
        corners = x * across, y * down, (x + width) * across, (y + height) * down
        text = "" if kind == "right" else named.get(box["class"], "")
        outlines.append(Outline(corners, COLORS[kind], kind != "right", text, text_is_below=kind == "false"))
    remark = f"{errors['missed']} missed, {errors['false']} false"
    return Panel(draw_outlines(image, outlines), short_name(errors["file_name"]), remark)
