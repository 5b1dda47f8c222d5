"""Figures and pictures as PNG, and the look that figures share."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from sparse_detr.files import write_atomically

LINE_COLORS = ("#1b6ca8", "#d9822b", "#2e8b57", "#a23b72", "#6c5ce7", "#8c6d31", "#d64550", "#4a4e69")
INK, PALE = "#222228", "#8a8a94"


def new_figure(*size: float, rows: int = 1, columns: int = 1, squeeze: bool = True) -> tuple[Any, Any]:
    """Return a figure of a size in inches that needs no screen, and its axes, as `pyplot.subplots` returns them.

    pyplot is left alone, so that a notebook keeps its way to show figures.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def png_of(figure: Any, dpi: int = 110) -> bytes:
    """Return a figure as the content of a PNG file; names with dollars are drawn as they are, not as formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi)
    return content.getvalue()


def save_figure(figure: Any, path: str | os.PathLike, dpi: int = 110) -> None:
    """Write a figure as a PNG file, see `png_of`; the file is there as a whole or not at all."""
    content = png_of(figure, dpi)
    write_atomically(path, lambda stream: stream.write(content))


def png_of_picture(picture: Image.Image) -> bytes:
    """Return a picture as the content of a PNG file."""
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=2)
    return content.getvalue()


def finish(axis: Any, title: str, *, grid: bool = True) -> None:
    """Give an axis its title and no frame at the top and at the right."""
    axis.set_title(title, fontsize=10, loc="left")
    if grid:
        axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def add_legend(figure: Any, lines: Sequence[Any], names: Sequence[str], place: str, *, most: int) -> None:
    """Put a legend outside of the axes, in as many columns as the longest name leaves room for.

    Args:
        figure: with a size in inches.
        lines: what the names are of.
        names: as many; a name that begins with "_" counts too.
        place: such as "outside lower center".
        most: columns.
    """
    column = 0.55 + 0.085 * max(map(len, names))  # inches of the line, and of a letter at 9 points
    columns = max(1, min(most, len(names), int(figure.get_figwidth() / column)))
    figure.legend(lines, names, loc=place, ncols=columns, fontsize=9, frameon=False)
