"""Contact sheets: pictures in rows of three, with boxes in a few colours of which some stand out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sparse_detr.visualization.colors import Color
from sparse_detr.visualization.page import Panel

_COLUMNS, _LONG_SIDE = 3, 1000
_NAME_LENGTH = 26


@dataclass(frozen=True)
class Outline:
    """A box to draw.

    Args:
        box: (x0, y0, x1, y1) in pixels of the image.
        color: of its line.
        is_strong: thick, with a white border, above the others.
    """

    box: tuple[float, float, float, float]
    color: Color
    is_strong: bool


def draw_outlines(image: np.ndarray, outlines: Sequence[Outline]) -> np.ndarray:
    """Draw boxes on an image (H, W, 3) uint8 RGB; it is returned at a long side of 1000."""
    scale = _LONG_SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(picture)
    for outline in sorted(outlines, key=lambda outline: outline.is_strong):
        corners = [round(side * scale) for side in outline.box]
        corners[2:] = max(corners[0], corners[2]), max(corners[1], corners[3])
        if outline.is_strong:
            around = [corners[0] - 3, corners[1] - 3, corners[2] + 3, corners[3] + 3]
            pen.rectangle(around, outline=(255, 255, 255), width=14)
        pen.rectangle(corners, outline=outline.color, width=8 if outline.is_strong else 4)
    return np.asarray(picture)


def in_rows(panels: Sequence[Panel]) -> list[list[Panel]]:
    """Lay the panels out in rows of three, the last filled up with blank ones."""
    blank = Panel(np.full_like(panels[0].picture, 255), "")
    filled = [*panels, *[blank] * (-len(panels) % _COLUMNS if len(panels) > _COLUMNS else 0)]
    return [filled[i : i + _COLUMNS] for i in range(0, len(filled), _COLUMNS)]


def short_name(file_name: str) -> str:
    """Return the name of a file without its folder; its end, if it is long."""
    name = Path(file_name).name
    return name if len(name) <= _NAME_LENGTH else f"...{name[3 - _NAME_LENGTH :]}"
