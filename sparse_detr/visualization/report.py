"""Pictures of a report: curves, confusion matrix and calibration as PNG, and the images with most errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sparse_detr.visualization.colors import Color
from sparse_detr.visualization.figures import new_figure, png_of
from sparse_detr.visualization.outlines import Outline, draw_outlines, in_rows, short_name
from sparse_detr.visualization.page import Panel, compose_page

COLORS: dict[str, Color] = {"missed": (222, 28, 40), "false": (28, 92, 235), "right": (0, 148, 92)}
"""Of the boxes of an image, by kind."""
_MEANINGS = {"missed": "missed true boxes", "false": "false detections", "right": "right detections"}
_LINES = ("#1b6ca8", "#d9822b", "#2e8b57", "#a23b72", "#6c5ce7", "#8c6d31", "#d64550", "#4a4e69")
_MOST_NAMED, _MOST_NUMBERED, _MOST_IN_MATRIX = 8, 20, 40
_INK = "#222228"


def draw_curves(numbers: Mapping[str, Any]) -> bytes:
    """Return a PNG of precision over recall, and of F1 over the score threshold, a line a class.

    With more than 8 classes, the lines of classes are thin and grey, and their mean is drawn.

    Args:
        numbers: a report's, see `report.numbers`.
    """
    figure, axes = new_figure(11, 4.4, columns=2)
    curves, rows = numbers["curves"], numbers["classes"]
    known = [index for index, row in enumerate(rows) if row["true_boxes"]]
    named = len(known) <= _MOST_NAMED
    for axis, kind in zip(axes, ("precision", "f1"), strict=True):
        for place, index in enumerate(known):
            style = {"color": _LINES[place], "linewidth": 1.8} if named else {"color": "#8a8a94", "linewidth": 0.6}
            axis.plot(curves["steps"], curves[kind][index], label=rows[index]["name"] if named else None, **style)
    if not named:
        mean = np.mean([curves["precision"][index] for index in known], axis=0)
        axes[0].plot(curves["steps"], mean, color=_LINES[0], linewidth=2.4, label=f"mean of {len(known)} classes")
    style = {"color": _INK, "linewidth": 2.4, "linestyle": "-" if not named else "--"}
    axes[1].plot(curves["steps"], curves["f1_all"], label="all detections together", **style)
    if numbers["all"]:
        point = numbers["all"]["threshold"], numbers["all"]["f1"]
        axes[1].plot(*point, "o", color=_INK)
        place = {"xytext": (0, -18), "textcoords": "offset points", "ha": "center"}
        place["bbox"] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1}
        axes[1].annotate(f"{point[1]:.2f} at {point[0]:.2f}", point, **place)
    titles = ("precision over recall, IoU 0.5", "F1 over the score threshold, IoU 0.5")
    for axis, title, x, y in zip(axes, titles, ("recall", "score threshold"), ("precision", "F1"), strict=True):
        axis.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel=x, ylabel=y)
        _finish(axis, title)
    figure.legend(*_labels(axes), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    return png_of(figure)


def _labels(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Return the lines and names of the legend, each name once."""
    found = {name: line for axis in axes for line, name in zip(*axis.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)


def _finish(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10, loc="left")
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def draw_confusion(numbers: Mapping[str, Any]) -> bytes:
    """Return a PNG of the confusion matrix: true classes are rows, coloured by the share of the row.

    Of more than 40 classes, those with most errors are shown.

    Args:
        numbers: a report's, see `report.numbers`.
    """
    matrix = np.array(numbers["confusion"]["matrix"])
    chosen = _most_errors(matrix)
    names = [numbers["confusion"]["names"][index] for index in chosen]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    shares[-1] = 0  # what is no object has no number of its own to be a share of
    shares, counts = shares[np.ix_(chosen, chosen)], matrix[np.ix_(chosen, chosen)]
    side = 3.2 + min(0.75, 4.5 / len(chosen) + 0.15) * len(chosen)
    figure, axis = new_figure(side + 0.6, side)
    drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), [*names[:-1], "missed"], rotation=45, ha="right", fontsize=9)
    axis.set_yticks(range(len(names)), [*names[:-1], "no object"], fontsize=9)
    axis.set(xlabel="detected as", ylabel="true class")
    if len(names) <= _MOST_NUMBERED:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.6 else _INK
                axis.text(column, row, counts[row, column], ha="center", va="center", color=color, fontsize=9)
    figure.colorbar(drawn, ax=axis, shrink=0.7, label="share of the true boxes of the class")
    more = "" if len(chosen) == len(matrix) else f": the {len(chosen) - 1} classes with most errors"
    axis.set_title(f"confusions at the thresholds of the classes{more}", fontsize=10, loc="left")
    return png_of(figure)


def _most_errors(matrix: np.ndarray) -> list[int]:
    """Return the classes to show, in their order, and the background."""
    errors = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    worst = np.argsort(-errors[:-1], kind="stable")[:_MOST_IN_MATRIX]
    return [*sorted(worst.tolist()), len(matrix) - 1]


def draw_calibration(numbers: Mapping[str, Any]) -> bytes:
    """Return a PNG of the share of right detections over their score, and of how many detections have such a score.

    Args:
        numbers: a report's, see `report.numbers`.
    """
    figure, (above, below) = new_figure(5.6, 5.4, rows=2)
    bins = numbers["calibration"]["bins"]
    full = [one for one in bins if one["detections"]]
    above.plot((0, 1), (0, 1), color="#8a8a94", linestyle="--", linewidth=1.2, label="score = share that is right")
    lefts = [one["from"] for one in full]
    widths = [one["to"] - one["from"] for one in full]
    style = {"align": "edge", "edgecolor": "white"}
    above.bar(lefts, [one["right"] for one in full], widths, color=_LINES[0], **style)
    above.plot([one["mean_score"] for one in full], [one["right"] for one in full], "o-", color=_INK, markersize=4)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
    above.legend(fontsize=8, frameon=False, loc="upper left")
    error = numbers["calibration"]["expected_error"]
    _finish(above, f"calibration at IoU 0.5: expected error {error:.3f}")
    bars = below.bar(lefts, [one["detections"] for one in full], widths, color="#8a8a94", **style)
    below.bar_label(bars, fontsize=8)
    most = max(one["detections"] for one in full)
    below.set(xlim=(0, 1), yscale="log", ylim=(0.5, 4 * most), xlabel="score")
    below.set_yticks([], [])
    below.set_yticks([], [], minor=True)
    _finish(below, "detections with such a score")
    return png_of(figure)


def worst_page(worst: Sequence[Mapping[str, Any]], pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Show the images with most errors, with missed, false and right boxes.

    Args:
        worst: a report's `worst`, see `report.numbers`; at least one.
        pictures: (H, W, 3) uint8 RGB of each, by file name.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    panels = [_panel(pictures[image["file_name"]], image) for image in worst]
    legend = [(COLORS[kind], f"{what} {sum(image[kind] for image in worst)}") for kind, what in _MEANINGS.items()]
    title = f"The {len(panels)} images with most errors" if len(panels) > 1 else "The image with most errors"
    return compose_page(title, "Detections from the threshold of their class on, IoU 0.5", in_rows(panels), legend)


def _panel(image: np.ndarray, errors: Mapping[str, Any]) -> Panel:
    outlines = [Outline(_corners(box["bbox"]), COLORS[box["kind"]], box["kind"] != "right") for box in errors["boxes"]]
    remark = f"{errors['missed']} missed, {errors['false']} false"
    return Panel(draw_outlines(image, outlines), short_name(errors["file_name"]), remark)


def _corners(box: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height
