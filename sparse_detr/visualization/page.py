"""Titled pictures in rows on a white page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import Colormap, Normalize
from PIL import Image, ImageDraw, ImageFont

from sparse_detr.visualization.colors import Color

INK, MUTED, PAPER = (34, 34, 40), (112, 112, 122), (255, 255, 255)
_WIDTH, _MARGIN, _GAP = 1600, 28, 20
_MAX_PANEL_HEIGHT = 1544
_TITLE_SIZE, _TEXT_SIZE = 30, 19
_TITLE_HEIGHT, _BAR_HEIGHT = 36, 56


@dataclass(frozen=True, eq=False)
class ColorBar:
    """What the colours of a picture mean.

    Args:
        norm: from values to [0, 1].
        colormap: from [0, 1] to colours.
        mark: a value to point at, with what it is.
    """

    norm: Normalize
    colormap: Colormap
    mark: tuple[float, str] | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """A picture (H, W, 3) uint8 with a title, a remark at the right of the title, and a colour bar below."""

    picture: np.ndarray
    title: str
    remark: str = ""
    bar: ColorBar | None = None


Legend = Sequence[tuple[Color, str]]


def compose_page(title: str, remark: str, rows: Sequence[Sequence[Panel]], legend: Legend = ()) -> np.ndarray:
    """Lay panels out row by row; those of a row share its width.

    Args:
        title: heading of the page.
        remark: a line below the heading; "" for none.
        rows: panels, whose pictures have about the same proportions.
        legend: colours and what they mean, in a line below the remark.

    Returns:
        (H, W, 3) uint8 RGB, 1600 pixels wide.
    """
    strips = [_heading(title, remark), *([_legend(legend)] if legend else []), *(_row(row) for row in rows)]
    page = Image.new("RGB", (_WIDTH, _MARGIN + sum(strip.height + _GAP for strip in strips)), PAPER)
    top = _MARGIN
    for strip in strips:
        page.paste(strip, (_MARGIN, top))
        top += strip.height + _GAP
    return np.asarray(page)


def _heading(title: str, remark: str) -> Image.Image:
    room = _WIDTH - 2 * _MARGIN
    drawn = Image.new("RGB", (room, round((2.2 if remark else 1.2) * _TITLE_SIZE)), PAPER)
    pen = ImageDraw.Draw(drawn)
    pen.text((0, 0), title, INK, _fitting_font(title, _TITLE_SIZE, room, bold=True), anchor="lt")
    pen.text((0, 1.4 * _TITLE_SIZE), remark, MUTED, _fitting_font(remark, _TEXT_SIZE + 4, room), anchor="lt")
    return drawn


def _legend(legend: Legend) -> Image.Image:
    text, gap = font(_TEXT_SIZE), 12
    drawn = Image.new("RGB", (_WIDTH - 2 * _MARGIN, _TITLE_SIZE), PAPER)
    pen, left = ImageDraw.Draw(drawn), 0.0
    for color, meaning in legend:
        pen.rectangle((left, 3, left + _TEXT_SIZE, 3 + _TEXT_SIZE), color)
        left += _TEXT_SIZE + gap
        pen.text((left, 3 + _TEXT_SIZE / 2), meaning, INK, text, anchor="lm")
        left += text.getlength(meaning) + 3 * gap
    return drawn


def _fitting_font(text: str, size: int, room: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font at a size, or smaller if the text would be wider than the room."""
    width = font(size, bold=bold).getlength(text)
    return font(size if width <= room else int(size * room / width), bold=bold)


def _row(panels: Sequence[Panel]) -> Image.Image:
    room = _WIDTH - 2 * _MARGIN
    tallest = max(panel.picture.shape[0] / panel.picture.shape[1] for panel in panels)
    width = min((room - _GAP * (len(panels) - 1)) // len(panels), max(1, round(_MAX_PANEL_HEIGHT / tallest)))
    bar_height = _BAR_HEIGHT if any(panel.bar for panel in panels) else 0
    strip = Image.new("RGB", (room, _TITLE_HEIGHT + max(1, round(width * tallest)) + bar_height), PAPER)
    for column, panel in enumerate(panels):
        strip.paste(_panel(panel, width), (column * (width + _GAP), 0))
    return strip


def _panel(panel: Panel, width: int) -> Image.Image:
    height = max(1, round(width * panel.picture.shape[0] / panel.picture.shape[1]))
    bar_height = _BAR_HEIGHT if panel.bar else 0
    drawn = Image.new("RGB", (width, _TITLE_HEIGHT + height + bar_height), PAPER)
    pen = ImageDraw.Draw(drawn)
    pen.text((0, _TITLE_HEIGHT / 2), panel.title, INK, font(_TEXT_SIZE, bold=True), anchor="lm")
    pen.text((width, _TITLE_HEIGHT / 2), panel.remark, MUTED, font(_TEXT_SIZE), anchor="rm")
    picture = Image.fromarray(panel.picture).resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)
    drawn.paste(picture, (0, _TITLE_HEIGHT))
    if panel.bar:
        drawn.paste(_color_bar(panel.bar, width), (0, _TITLE_HEIGHT + height))
    return drawn


def _color_bar(bar: ColorBar, width: int) -> Image.Image:
    """Draw a strip of the colours with their lowest and highest value below, and a marked value between."""
    drawn = Image.new("RGB", (width, _BAR_HEIGHT), PAPER)
    pen, small = ImageDraw.Draw(drawn), font(_TEXT_SIZE - 4)
    values = np.linspace(bar.norm.vmin, bar.norm.vmax, width)
    colors = bar.colormap(bar.norm(values), bytes=True)[None, :, :3]
    drawn.paste(Image.fromarray(np.repeat(colors, 14, 0)), (0, 10))
    pen.text((0, 44), f"{bar.norm.vmin:.3g}", MUTED, small, anchor="lm")
    pen.text((width, 44), f"{bar.norm.vmax:.3g}", MUTED, small, anchor="rm")
    if bar.mark:
        value, text = bar.mark
        x = float(np.clip((value - bar.norm.vmin) / (bar.norm.vmax - bar.norm.vmin), 0, 1)) * width
        pen.line((x, 6, x, 28), INK, width=3)
        pen.text((np.clip(x, 0.25 * width, 0.75 * width), 44), text, INK, small, anchor="mm")
    return drawn


@lru_cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib, at a height in pixels."""
    properties = font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    return ImageFont.truetype(font_manager.findfont(properties), max(size, 1))
