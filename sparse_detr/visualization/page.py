"""Titled pictures in rows on a white page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib import font_manager
from matplotlib.colors import Colormap, Normalize
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, PAPER = (34, 34, 40), (112, 112, 122), (255, 255, 255)
_WIDTH, _MARGIN, _GAP = 1920, 32, 24
_MAX_PANEL_HEIGHT = 1856
_TITLE_SIZE, _TEXT_SIZE = 34, 22
_TITLE_HEIGHT, _BAR_HEIGHT = 40, 60


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


def compose_page(title: str, rows: Sequence[Sequence[Panel]]) -> np.ndarray:
    """Lay panels out row by row; those of a row share its width.

    Args:
        title: heading of the page.
        rows: panels, whose pictures have about the same proportions.

    Returns:
        (H, W, 3) uint8 RGB, 1920 pixels wide.
    """
    strips = [_row(row) for row in rows]
    head = 2 * _MARGIN + _TITLE_SIZE
    page = Image.new("RGB", (_WIDTH, head + sum(strip.height + _GAP for strip in strips)), PAPER)
    width = font(_TITLE_SIZE, bold=True).getlength(title)
    title_font = font(round(_TITLE_SIZE * min(1, (_WIDTH - 2 * _MARGIN) / max(width, 1))), bold=True)
    ImageDraw.Draw(page).text((_MARGIN, head / 2), title, INK, title_font, anchor="lm")
    top = head
    for strip in strips:
        page.paste(strip, (_MARGIN, top))
        top += strip.height + _GAP
    return np.asarray(page)


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
    """A strip of the colours with their lowest and highest value below, and a marked value between."""
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
