"""Many small pictures with their boxes on one sheet, to see data as the training sees them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from sparse_detr.visualization.colors import class_color
from sparse_detr.visualization.page import INK, MUTED, PAPER, font

_CELL, _GAP, _MARGIN = 380, 18, 26
_TITLE, _TEXT, _LINE = 28, 17, 26
_BOX = 3
_MOST_CLASSES = 40


@dataclass(frozen=True, eq=False)
class Sample:
    """A picture of the sheet.

    Args:
        image: (height, width, 3) uint8 RGB.
        boxes: (T, 4) x1, y1, x2, y2 in pixels of `image`.
        labels: (T,) class indices.
        name: written below it.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: Sequence[int]
    name: str


def draw_contact_sheet(
    samples: Sequence[Sample], class_names: Sequence[str], *, title: str, remark: str = "", columns: int = 4
) -> np.ndarray:
    """Draw samples in rows, each reduced to its cell, with boxes in the colours of their classes.

    Args:
        samples: at least one.
        class_names: by class index.
        title, remark: a heading and a line below it.
        columns: pictures in a row.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    columns = min(columns, len(samples))
    rows = math.ceil(len(samples) / columns)
    width = max(2 * _MARGIN + columns * (_CELL + _GAP) - _GAP, 900)
    used = sorted({label for sample in samples for label in sample.labels})[:_MOST_CLASSES]
    legend = _legend_lines(used, class_names, width - 2 * _MARGIN)
    top = _MARGIN + 2 * _LINE + 8 + _LINE * len(legend) + 12
    page = Image.new("RGB", (width, top + rows * (_CELL + _LINE + _GAP) + _MARGIN), PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, _MARGIN), title, INK, font(_TITLE))
    pen.text((_MARGIN, _MARGIN + _LINE + 12), remark, MUTED, font(_TEXT))
    for line, entries in enumerate(legend):
        _draw_legend(pen, entries, _MARGIN + 2 * _LINE + 16 + line * _LINE)
    for index, sample in enumerate(samples):
        left = _MARGIN + index % columns * (_CELL + _GAP)
        upper = top + index // columns * (_CELL + _LINE + _GAP)
        picture = _picture(sample)
        page.paste(picture, (left + (_CELL - picture.width) // 2, upper + _CELL - picture.height))
        height, width_ = sample.image.shape[:2]
        text = f"{_short(sample.name, 24)}  {width_} x {height}, {len(sample.labels)} boxes"
        pen.text((left, upper + _CELL + 4), text, MUTED, font(_TEXT - 2))
    return np.asarray(page)


def _picture(sample: Sample) -> Image.Image:
    height, width = sample.image.shape[:2]
    scale = _CELL / max(height, width)
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    picture = Image.fromarray(sample.image).resize(
        size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    )
    pen = ImageDraw.Draw(picture, "RGBA")
    for box, label in zip(np.asarray(sample.boxes).reshape(-1, 4) * scale, sample.labels):
        x1, y1, x2, y2 = (round(float(side)) for side in box)
        corners = [x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)]
        thick = _BOX if min(x2 - x1, y2 - y1) > 6 * _BOX else 1
        pen.rectangle([corners[0] - 1, corners[1] - 1, corners[2] + 1, corners[3] + 1], outline=(0, 0, 0, 160))
        pen.rectangle(corners, outline=(*class_color(label), 255), width=thick)
    return picture


def _legend_lines(labels: Sequence[int], names: Sequence[str], width: float) -> list[list[tuple[int, str, float]]]:
    """Return the entries of each line as class index, name and left edge."""
    lines: list[list[tuple[int, str, float]]] = [[]]
    left = 0.0
    for label in labels:
        name = _short(names[label] if label < len(names) else str(label), 40)
        needed = 44 + font(_TEXT).getlength(name)
        if left + needed > width and lines[-1]:
            lines.append([])
            left = 0.0
        lines[-1].append((label, name, _MARGIN + left))
        left += needed
    return lines


def _draw_legend(pen: ImageDraw.ImageDraw, entries: Sequence[tuple[int, str, float]], top: float) -> None:
    for label, name, left in entries:
        pen.rectangle([left, top + 4, left + 14, top + 18], fill=class_color(label))
        pen.text((left + 22, top), name, INK, font(_TEXT))


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"...{text[3 - length :]}"
