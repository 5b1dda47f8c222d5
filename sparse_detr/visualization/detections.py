"""Boxes with labels on a picture, readable for one large object as for a hundred small ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sparse_detr.visualization.colors import class_color, text_color
from sparse_detr.visualization.page import INK, MUTED, PAPER, font

# Drawn at twice the size and reduced, for smooth edges; a small picture is enlarged first, so that labels are readable.
_SUPERSAMPLING = 2
_MIN_LONG_SIDE, _MAX_LONG_SIDE = 1280, 2048
# A label may hide at most this share of any box.
_MAX_HIDDEN = 0.3


@dataclass(frozen=True)
class Detection:
    """One detected object.

    Args:
        box: (x0, y0, x1, y1) in pixels of the image.
        score: in [0, 1].
        label: class index.
        name: class name.
    """

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str

    @property
    def mark(self) -> str:
        """What the label says before class and score."""
        return ""


@dataclass(frozen=True)
class TrackedDetection(Detection):
    """One object in a frame of a video, with the number that it has in all frames."""

    number: int

    @property
    def mark(self) -> str:
        return f"#{self.number} "


def list_detections(instances: Any, class_names: Sequence[str], score_threshold: float = 0.0) -> list[Detection]:
    """Read Detectron2's `Instances` into plain numbers, best first.

    Args:
        instances: has `pred_boxes`, `scores` and `pred_classes`.
        class_names: by class index; an index beyond them is shown as a number.
        score_threshold: detections below it are left out.
    """
    names = dict(enumerate(class_names))
    rows = zip(
        instances.pred_boxes.tensor.tolist(), instances.scores.tolist(), instances.pred_classes.tolist(), strict=True
    )
    detections = [
        Detection(box=tuple(box), score=score, label=label, name=names.get(label, str(label)))
        for box, score, label in rows
        if score >= score_threshold
    ]
    return sorted(detections, key=lambda detection: -detection.score)


def list_boxes(boxes: np.ndarray, labels: Sequence[int], class_names: Sequence[str]) -> list[Detection]:
    """Return true boxes (T, 4), xyxy in pixels, as detections with the score 1."""
    names = dict(enumerate(class_names))
    return [
        Detection(box=tuple(box), score=1.0, label=label, name=names.get(label, str(label)))
        for box, label in zip(boxes.tolist(), labels, strict=True)
    ]


def draw_detections(
    image: np.ndarray,
    detections: Sequence[Detection],
    *,
    caption: str = "",
    with_labels: bool = True,
    zoom: float = 1.0,
) -> np.ndarray:
    """Draw boxes, labels where they fit, and a line below that names the colours and counts the objects.

    Sure detections are drawn strong and on top; doubtful ones thin and faint.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: in pixels of the image.
        caption: stands at the right of the line below the picture.
        with_labels: write scores, and classes if there are several; False for true boxes.
        zoom: how many times as large lines and letters are; above 1 for a picture that is shown reduced.

    Returns:
        (H', W', 3) uint8 RGB; the image enlarged to at least 1280, reduced to at most 2048 pixels on its long side,
        and the line.
    """
    long_side = max(image.shape[:2])
    scale = min(max(long_side, _MIN_LONG_SIDE), _MAX_LONG_SIDE) / long_side * _SUPERSAMPLING
    canvas = _Canvas(image=image, scale=scale, zoom=zoom)
    ordered = sorted(detections, key=lambda detection: detection.score)
    for detection in ordered:
        canvas.draw_box(detection)
    for detection in reversed(ordered) if with_labels else ():
        canvas.draw_label(detection, ordered)
    return np.asarray(canvas.with_legend(detections, caption).reduce(_SUPERSAMPLING))


@dataclass
class _Canvas:
    """An enlarged picture in the making; `scale` is its pixels per image pixel."""

    image: np.ndarray
    scale: float
    zoom: float = 1.0
    labels: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        height, width = (round(side * self.scale) for side in self.image.shape[:2])
        self.picture = Image.fromarray(self.image).resize((width, height), Image.Resampling.BICUBIC)
        self.pen = ImageDraw.Draw(self.picture, "RGBA")
        self.unit = self.zoom * max(width, height) / 640  # a hair line; everything that is drawn is measured in it
        self.font = font(round(9 * self.unit))

    def draw_box(self, detection: Detection) -> None:
        corners = [round(side * self.scale) for side in detection.box]
        width = max(1, round(self.unit * (0.6 + 1.4 * detection.score)))
        self.pen.rectangle(_grown(corners, self.unit / 2), outline=(0, 0, 0, 110), width=width + round(self.unit))
        alpha = round(255 * (0.5 + 0.5 * detection.score))
        self.pen.rectangle(corners, outline=(*class_color(detection.label), alpha), width=width)

    def draw_label(self, detection: Detection, boxes: Sequence[Detection]) -> None:
        """Write the score, and the class if there are several, beside the box; nowhere if it would hide something."""
        several = any(other.label != detection.label for other in boxes)
        name = f"{detection.name} " if several else ""
        text = f"{detection.mark}{name}{detection.score:.0%}"
        place = self._free_place(detection, text, np.array([other.box for other in boxes]) * self.scale)
        if place is None:
            return
        self.labels.append(place)
        color, alpha = class_color(detection.label), round(150 + 100 * detection.score)
        self.pen.rounded_rectangle(place.tolist(), radius=2 * self.unit, fill=(*color, alpha))
        left, top, right, bottom = place
        self.pen.text(((left + right) / 2, (top + bottom) / 2), text, text_color(color), self.font, anchor="mm")

    def _free_place(self, detection: Detection, text: str, boxes: np.ndarray) -> np.ndarray | None:
        width, height = self.font.getlength(text) + 5 * self.unit, 12 * self.unit
        left, top, _, bottom = (side * self.scale for side in detection.box)
        gap = self.unit
        for y in (top - height - gap, bottom + gap, top + 2 * gap):
            place = np.array([left, y, left + width, y + height])
            if self._inside(place) and self._hides_little(place, boxes):
                return place
        return None

    def _inside(self, place: np.ndarray) -> bool:
        width, height = self.picture.size
        return place.min() >= 0 and place[2] <= width and place[3] <= height

    def _hides_little(self, place: np.ndarray, boxes: np.ndarray) -> bool:
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        on_boxes = _intersections(place, boxes) <= _MAX_HIDDEN * areas
        return bool(on_boxes.all()) and not (self.labels and _intersections(place, np.array(self.labels)).any())

    def with_legend(self, detections: Sequence[Detection], caption: str) -> Image.Image:
        """Append a line of colours, class names and counts."""
        width, height = self.picture.size
        line = round(24 * self.unit)
        page = Image.new("RGB", (width, height + line), PAPER)
        page.paste(self.picture)
        pen = ImageDraw.Draw(page)
        middle, margin = height + line / 2, 8 * self.unit
        pen.text((width - margin, middle), caption, MUTED, self.font, anchor="rm")
        space = width - 3 * margin - self.font.getlength(caption)
        self._draw_legend(pen, detections, (margin, middle), space)
        return page

    def _draw_legend(
        self, pen: ImageDraw.ImageDraw, detections: Sequence[Detection], start: tuple[float, float], space: float
    ) -> None:
        left, middle = start
        if not detections:
            pen.text(start, "nothing found", MUTED, self.font, anchor="lm")
        swatch = 5 * self.unit
        counts = Counter((detection.label, detection.name) for detection in detections)
        for shown, ((label, name), count) in enumerate(counts.most_common()):
            text = f"{name}  {count}"
            width = 2 * swatch + self.font.getlength(text) + 5 * swatch
            if left + width > space:
                pen.text((left, middle), f"and {len(counts) - shown} more", MUTED, self.font, anchor="lm")
                return
            corners = [left, middle - swatch, left + 2 * swatch, middle + swatch]
            pen.rounded_rectangle(corners, radius=self.unit, fill=class_color(label))
            pen.text((left + 3 * swatch, middle), text, INK, self.font, anchor="lm")
            left += width


def _grown(corners: Sequence[float], margin: float) -> list[float]:
    left, top, right, bottom = corners
    return [left - margin, top - margin, right + margin, bottom + margin]


def _intersections(place: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the areas that one xyxy box has in common with each of (T, 4)."""
    sides = np.minimum(place[2:], boxes[:, 2:]) - np.maximum(place[:2], boxes[:, :2])
    return sides.clip(min=0).prod(-1)
