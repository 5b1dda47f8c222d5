"""Contact sheets: pictures in rows of three, with boxes in a few colours of which some stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sparse_detr.visualization.colors import Color, text_color
from sparse_detr.visualization.page import PAPER, Panel, font

_COLUMNS, _LONG_SIDE, _CELL_WIDTH = 3, 1000, 520
_NAME_LENGTH = 26
_STRONG, _WEAK, _THINNEST = 8, 4, 2
_BORDER, _TEXT_SIZE = 3, 26
_FLATTEST, _TALLEST = 0.5, 1.5  # height by width of a cell of pictures of different shapes


@dataclass(frozen=True)
class Outline:
    """A box to draw.

    Args:
        box: (x0, y0, x1, y1) in pixels of the image.
        color: of its line.
        is_strong: thick, with a white border, above the others.
        text: written beside it; "" for none.
        text_is_below: whether the text is at its lower edge.
    """

    box: tuple[float, float, float, float]
    color: Color
    is_strong: bool
    text: str = ""
    text_is_below: bool = False


def at_most(image: np.ndarray, long_side: int = _LONG_SIDE) -> np.ndarray:
    """Return an image (H, W, 3) uint8 RGB, reduced if its long side is longer."""
    height, width = image.shape[:2]
    scale = long_side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))


def draw_outlines(image: np.ndarray, outlines: Sequence[Outline]) -> np.ndarray:
    """Draw boxes on an image (H, W, 3) uint8 RGB; it is returned at a long side of 1000.

    Lines lie around their boxes, so that small objects can be seen; at the border of the image they lie within. Of
    boxes that are as strong as each other, the last one is on top.
    """
    scale = _LONG_SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    ordered = sorted(outlines, key=lambda outline: outline.is_strong)
    for outline in ordered:
        _draw_box(pen, outline, _corners(outline, scale, picture.size), picture.size)
    for outline in ordered:
        if outline.text:
            _draw_text(pen, outline, _corners(outline, scale, picture.size), picture.size)
    return np.asarray(picture)


def _corners(outline: Outline, scale: float, size: tuple[int, int]) -> list[int]:
    """Return the first and last pixels of a box within a picture: left, top, right, bottom."""
    limits = np.array([*size, *size], dtype=np.float64)
    left, top, right, bottom = np.clip(np.array(outline.box) * scale, 0, limits).round().astype(int).tolist()
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return [left, top, max(left, right - 1), max(top, bottom - 1)]


def _draw_box(pen: ImageDraw.ImageDraw, outline: Outline, corners: Sequence[int], size: tuple[int, int]) -> None:
    left, top, right, bottom = corners
    thickest = min(right - left + 1, bottom - top + 1) // 4
    thick = max(_THINNEST, min(_STRONG if outline.is_strong else _WEAK, thickest))
    if outline.is_strong:
        border = min(_BORDER, thick // 2)
        pen.rectangle(_around(corners, thick + border, size), outline=(255, 255, 255), width=thick + border)
    pen.rectangle(_around(corners, thick, size), outline=outline.color, width=thick)


def _around(corners: Sequence[int], margin: int, size: tuple[int, int]) -> list[int]:
    """Return corners that lie `margin` pixels outside of others, but within the picture."""
    left, top, right, bottom = corners
    return [
        max(left - margin, 0),
        max(top - margin, 0),
        min(right + margin, size[0] - 1),
        min(bottom + margin, size[1] - 1),
    ]


def _draw_text(pen: ImageDraw.ImageDraw, outline: Outline, corners: Sequence[int], size: tuple[int, int]) -> None:
    """Write a text on a plate above or below a box, within the picture."""
    letters = font(_TEXT_SIZE, bold=True)
    width, height = round(letters.getlength(outline.text)) + 8, _TEXT_SIZE + 6
    left, top, _, bottom = _around(corners, _STRONG, size)
    x = max(0, min(left, size[0] - width))
    y = max(0, min(bottom if outline.text_is_below else top - height, size[1] - height))
    pen.rectangle([x, y, x + width, y + height], fill=outline.color)
    pen.text((x + 4, y + height / 2), outline.text, text_color(outline.color), letters, anchor="lm")


def in_rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Lay the panels out in rows of three, the last filled up with blank ones; pictures get one shape."""
    panels = _same_shape(panels)
    blank = Panel(np.full_like(panels[0].picture, 255), "")
    filled = [*panels, *[blank] * (-len(panels) % _COLUMNS if len(panels) > _COLUMNS else 0)]
    return [filled[i : i + _COLUMNS] for i in range(0, len(filled), _COLUMNS)]


def _same_shape(panels: Sequence[Panel]) -> list[Panel]:
    """Put pictures of different shapes into the middle of white cells of one shape."""
    shapes = {panel.picture.shape[:2] for panel in panels}
    if len(shapes) == 1 and (len(panels) == 1 or _FLATTEST <= _proportion(panels[0]) <= _TALLEST):
        return list(panels)
    middle = float(np.median([_proportion(panel) for panel in panels]))
    width = _LONG_SIDE if len(panels) <= _COLUMNS else _CELL_WIDTH
    cell = width, round(width * min(max(middle, _FLATTEST), _TALLEST))
    return [replace(panel, picture=_in_cell(panel.picture, cell)) for panel in panels]


def _proportion(panel: Panel) -> float:
    return panel.picture.shape[0] / panel.picture.shape[1]


def _in_cell(picture: np.ndarray, cell: tuple[int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = min(cell[0] / width, cell[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    sheet = Image.new("RGB", cell, PAPER)
    fitted = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    sheet.paste(fitted, ((cell[0] - size[0]) // 2, (cell[1] - size[1]) // 2))
    return np.asarray(sheet)


def short_name(file_name: str) -> str:
    """Return the name of a file without its folder; its end, if it is long."""
    name = Path(file_name).name
    return name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
