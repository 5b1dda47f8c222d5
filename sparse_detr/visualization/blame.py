"""Pictures of missed objects: the images with most misses on one page, and bars of the misses by size and class."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_detr.analysis.blame import (
    BADLY_LOCALISED,
    BEATEN,
    FOUND,
    MISCLASSIFIED,
    MISSES,
    NOT_PROPOSED,
    NOT_SELECTED,
    VERDICTS,
)
from sparse_detr.analysis.blame_report import BlamedObject, verdict_counts, worst_images
from sparse_detr.visualization.colors import Color
from sparse_detr.visualization.figures import add_legend, finish, new_figure, save_figure
from sparse_detr.visualization.names import picture_names
from sparse_detr.visualization.outlines import Outline, draw_outlines, in_rows, short_name
from sparse_detr.visualization.page import Legend, Panel, compose_page

COLORS: dict[str, Color] = {
    FOUND: (152, 158, 168),
    NOT_SELECTED: (222, 28, 40),
    NOT_PROPOSED: (255, 138, 0),
    BEATEN: (28, 92, 235),
    MISCLASSIFIED: (158, 30, 200),
    BADLY_LOCALISED: (0, 148, 92),
}
_HATCHES = dict(zip(MISSES, ("", "////", "", "....", "\\\\\\\\"), strict=True))
_MOST_CLASSES = 20


def worst_images_page(objects: Sequence[BlamedObject], read: Callable[[str], np.ndarray], number: int) -> np.ndarray:
    """Show the images with most misses: missed boxes in the colour of their blame, found ones thin and grey.

    Args:
        objects: true objects of all images.
        read: file name -> (H, W, 3) uint8 RGB.
        number: of images to show.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    worst = worst_images(objects, number)
    shown = [item for _, items in worst for item in items]
    panels = [_panel(read(items[0].file_name), items) for _, items in worst]
    title = f"The {len(panels)} images with most missed objects" if len(panels) > 1 else "The image with missed objects"
    if not panels:
        return compose_page("No image has a missed object", f"{len(objects)} objects are found", [])
    missed = sum(item.verdict != FOUND for item in objects)
    here = sum(item.verdict != FOUND for item in shown)
    remark = f"{here} of the {missed} missed objects of the data are here; a thick box is a missed object"
    return compose_page(title, remark, in_rows(panels), _legend(shown))


def _legend(objects: Sequence[BlamedObject]) -> Legend:
    return [(COLORS[verdict], f"{verdict} {count}") for verdict, count in verdict_counts(objects).items() if count]


def _panel(image: np.ndarray, objects: Sequence[BlamedObject]) -> Panel:
    missed = sum(item.verdict != FOUND for item in objects)
    name = short_name(objects[0].file_name)
    return Panel(draw_verdicts(image, objects), name, f"{missed} of {len(objects)} missed")


def draw_verdicts(image: np.ndarray, objects: Sequence[BlamedObject]) -> np.ndarray:
    """Draw the boxes of true objects on an image (H, W, 3) uint8 RGB; it is returned at a long side of 1000."""
    return draw_outlines(image, [Outline(item.box, COLORS[item.verdict], item.verdict != FOUND) for item in objects])


def draw_bars(summary: Mapping[str, Any], path: Path, *, title: str) -> None:
    """Write a picture of the share of missed objects by size and by class, divided by blame.

    Args:
        summary: see `blame_report.summary`.
        path: PNG file.
        title: stands above the picture.
    """
    instead = [f"class {number}" for number in range(1, len(summary["by_class"]) + 1)]
    names = picture_names(list(summary["by_class"]), instead)
    classes = sorted(zip(names, summary["by_class"].values(), strict=True), key=lambda entry: -_missed(entry[1]))
    parts = [
        ("size", [*summary["by_size"].items(), ("all", summary["verdicts"])]),
        ("class" if len(classes) <= _MOST_CLASSES else f"class, the {_MOST_CLASSES} with most misses", classes),
    ]
    rows = max(len(part[:_MOST_CLASSES]) for _, part in parts)
    figure, axes = new_figure(11, 1.9 + 0.42 * rows, columns=2)
    for axis, (name, part) in zip(axes, parts, strict=True):
        _draw_part(axis, dict(part[:_MOST_CLASSES]))
        finish(axis, f"by {name}", grid=False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    handles, labels = axes[0].get_legend_handles_labels()
    add_legend(figure, handles, labels, "outside lower center", most=len(labels))
    save_figure(figure, path)


def _draw_part(axis: Any, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Draw a bar a row: the percentage of its objects that are missed, by blame."""
    totals = [sum(counts.values()) for counts in rows.values()]
    lefts = np.zeros(len(rows))
    for blame in MISSES:
        counts = [row[blame] for row in rows.values()]
        widths = np.array([100 * n / max(total, 1) for n, total in zip(counts, totals, strict=True)])
        color = np.array(COLORS[blame]) / 255
        axis.barh(range(len(rows)), widths, left=lefts, height=0.62, color=color, label=blame, hatch=_HATCHES[blame])
        lefts += widths
    most = max(lefts.max(), 1.0)
    for place, (counts, total, width) in enumerate(zip(rows.values(), totals, lefts, strict=True)):
        text = f"{_missed(counts)} of {total}" if total else "no objects"
        axis.text(width + 0.015 * most, place, text, va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [str(name) for name in rows], fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.28 * most)
    axis.set_xlabel("missed objects, percent", fontsize=9)


def _missed(counts: Mapping[str, int]) -> int:
    return sum(counts[verdict] for verdict in VERDICTS if verdict != FOUND)
