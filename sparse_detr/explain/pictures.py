"""Pictures of an explanation: causes of detections, objects by their smallest budget, and two models compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from sparse_detr.explain.faithfulness import Comparison, Target
from sparse_detr.explain.image import ImageStory
from sparse_detr.explain.minimal_budget import SIZES, size_of
from sparse_detr.explain.page import KINDS, name_of, sampling_points
from sparse_detr.explain.words import detection_sentences, difference_sentence, size_sentences
from sparse_detr.visualization.colors import Color
from sparse_detr.visualization.page import ColorBar, Legend, Panel, compose_page

EXPLAINED, RANDOM = "#c2410c", "#5b6b7b"
NEVER: Color = (255, 45, 85)
REFINED, UNREFINED = (255, 214, 10), (255, 92, 138)
KIND_COLORS: dict[str, Color] = {
    "both": (200, 200, 208),
    "lost": NEVER,
    "gained": (52, 208, 88),
    "neither": (255, 149, 0),
}
BUDGET_BAR = ColorBar(norm=PowerNorm(0.5, vmin=0.0, vmax=1.0), colormap=colormaps["viridis_r"])
EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
LONG_SIDE, DOTS = 1280, 100


def causes_page(story: ImageStory, class_names: Sequence[str]) -> np.ndarray:
    """Show every explained detection with its sampling points, and its score as tokens are dropped or kept.

    Args:
        story: of an image with at least one explanation.
        class_names: by class index.

    Returns:
        (H, W, 3) uint8 RGB, as all pages here.
    """
    rows = []
    for number, explanation in story.explanations.items():
        name = name_of(explanation.target, class_names)
        sentence = detection_sentences(explanation, name)[1]
        panels = [Panel(_points_picture(story, explanation.target), f"{number + 1}: {name}", sentence[:70])]
        if explanation.dropped is not None and explanation.alone is not None:
            panels[0] = Panel(panels[0].picture, f"{number + 1}: {name}")
            panels += [
                Panel(_curves(explanation.dropped, "share of them dropped"), "Tokens under the box dropped"),
                Panel(_curves(explanation.alone, "share of them refined"), "Only these tokens refined"),
            ]
        rows.append(panels)
    legend: Legend = [(REFINED, "sampling point on a refined token"), (UNREFINED, "on a token that is not refined")]
    remark = "score of the detection: explained tokens, and as many random ones of the same levels"
    return compose_page(f"{story.name}: what detections were made from", remark, rows, legend)


def found_page(story: ImageStory, class_names: Sequence[str]) -> np.ndarray:
    """Colour every object by the smallest budget at which it is found, beside a histogram by size."""
    boxes = [
        (
            row.target,
            NEVER if row.smallest is None else _budget_color(row.smallest),
            "never" if row.smallest is None else f"{row.smallest:.0%}",
        )
        for row in story.found
    ]
    picture = _boxes_picture(story.image, boxes)
    panels = [
        Panel(picture, "Smallest budget (rho)", bar=BUDGET_BAR),
        Panel(_histogram(story, picture.shape[0] / picture.shape[1]), "Objects by smallest budget"),
    ]
    legend: Legend = [(NEVER, "never found")] if any(row.smallest is None for row in story.found) else []
    sentences = "; ".join(size_sentences(story.found))
    return compose_page(f"{story.name}: found from which budget on", sentences, [panels], legend)


def difference_page(story: ImageStory) -> np.ndarray:
    """Colour every object by which of the two models finds it."""
    assert story.difference is not None
    boxes = [(target, KIND_COLORS[kind], "") for kind in KINDS for target in getattr(story.difference, kind)]
    legend = [(KIND_COLORS[kind], words) for kind, words in KINDS.items() if getattr(story.difference, kind)]
    panel = Panel(_boxes_picture(story.image, boxes), "")
    return compose_page(f"{story.name}: two models", difference_sentence(story.difference), [[panel]], legend)


def _budget_color(budget: float) -> Color:
    red, green, blue, _ = BUDGET_BAR.colormap(BUDGET_BAR.norm(budget), bytes=True)
    return int(red), int(green), int(blue)


def _enlarged(image: np.ndarray) -> tuple[Image.Image, float]:
    """Return the image with a long side of 1280 pixels, and the factor."""
    height, width = image.shape[:2]
    scale = LONG_SIDE / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), scale


def _boxes_picture(image: np.ndarray, boxes: Sequence[tuple[Target, Color, str]]) -> np.ndarray:
    """Draw boxes in colours, each with a text in its corner, on the dimmed image."""
    picture, scale = _enlarged((image * 0.6).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for target, color, text in boxes:
        corners = [value * scale for value in target.box.tolist()]
        pen.rectangle(corners, outline=color, width=4)
        if text:
            pen.text((corners[0] + 8, corners[1] + 6), text, color, font_size=22)
    return np.asarray(picture)


def _points_picture(story: ImageStory, target: Target) -> np.ndarray:
    """Cut the detection out with a margin, and draw the places that its query looked at."""
    picture, scale = _enlarged(story.image)
    pen = ImageDraw.Draw(picture)
    x0, y0, x1, y1 = (value * scale for value in target.box.tolist())
    pen.rectangle((x0, y0, x1, y1), outline=(0, 190, 255), width=4)
    points = sampling_points(story, story.views[story.own_view], target)
    if points is not None:
        _draw_points(pen, story, points, picture.size)
    side = max(x1 - x0, (y1 - y0) * 4 / 3, 240) * 1.4
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    window = (middle_x - side / 2, middle_y - side * 3 / 8, middle_x + side / 2, middle_y + side * 3 / 8)
    return np.asarray(picture.crop(window).resize((800, 600), Image.Resampling.BICUBIC))


def _draw_points(pen: ImageDraw.ImageDraw, story: ImageStory, points: np.ndarray, size: tuple[int, int]) -> None:
    largest = max(points[:, 3].max(), 1e-12)
    for x, y, level, weight in points:
        if not (0 <= x < 1 and 0 <= y < 1):
            continue
        kept = story.maps.kept[int(level)]
        refined = kept[int(y * kept.shape[0]), int(x * kept.shape[1])]
        radius = 2 + 5 * weight / largest
        corners = (x * size[0] - radius, y * size[1] - radius, x * size[0] + radius, y * size[1] + radius)
        if refined:
            pen.rectangle(corners, fill=REFINED)
        else:
            pen.rectangle(corners, outline=UNREFINED, width=2)


def _curves(found: Comparison, label: str) -> np.ndarray:
    figure, axes = _chart(0.75)
    shares = found.explained.shares
    axes.fill_between(shares, found.lowest, found.highest, color=RANDOM, alpha=0.2, linewidth=0)
    axes.plot(shares, found.random.scores, color=RANDOM, linestyle="--", linewidth=2, label="random tokens")
    tokens = f"{found.explained.counts[-1]} tokens under the box"
    axes.plot(shares, found.explained.scores, color=EXPLAINED, linewidth=2.5, label=tokens)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=label, ylabel="score")
    axes.set_title(f"faithfulness {found.faithfulness:.2f}", fontsize=15, loc="right")
    axes.legend(frameon=False, fontsize=13)
    return _rendered(figure)


def _histogram(story: ImageStory, proportion: float) -> np.ndarray:
    """Count the objects of every size by their smallest budget, in bars on top of each other."""
    figure, axes = _chart(proportion)
    names = [f"≤ {edge:.0%}" for edge in EDGES[1:]] + ["never"]
    bottom = np.zeros(len(names))
    for index, (size, *_) in enumerate(SIZES):
        rows = [row.smallest for row in story.found if size_of(row.target) == size]
        counts = np.histogram([value for value in rows if value is not None], EDGES)[0]
        counts = np.append(counts, rows.count(None))
        if counts.sum():
            axes.bar(names, counts, bottom=bottom, color=colormaps["Blues"](0.4 + 0.25 * index), label=size)
        bottom += counts
    axes.set(ylabel="objects", xlabel="smallest budget at which they are found")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=13)
    return _rendered(figure)


def _chart(proportion: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, 8 * proportion), dpi=DOTS, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=13)
    axes.xaxis.label.set_fontsize(15)
    axes.yaxis.label.set_fontsize(15)
    return figure, axes


def _rendered(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
