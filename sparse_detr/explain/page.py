"""One HTML file that shows everything about some images: no server, no network, nothing else to load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sparse_detr.explain.faithfulness import Comparison, Explanation, Target
from sparse_detr.explain.image import BudgetView, ImageStory
from sparse_detr.explain.ledger import BACKGROUND, READING, Proposal
from sparse_detr.explain.minimal_budget import size_of
from sparse_detr.explain.words import (
    detection_sentences,
    difference_sentence,
    found_from,
    ledger_sentences,
    proposal_sentence,
    sanity_sentence,
    size_sentences,
)
from sparse_detr.visualization.colors import class_color
from sparse_detr.visualization.html import base64_of, html_page, jpeg_url

LONG_SIDE = 1024
MAX_POINTS = 96
KINDS = {
    "both": "found by both models",
    "lost": "lost by the second model",
    "gained": "gained by the second model",
    "neither": "found by neither model",
}
NO_BUDGET = "This model has no budget of tokens to change: its encoder always refines the same ones."


def write_page(
    images: Sequence[Mapping[str, Any]], *, model: str, score_threshold: float, proposal: Proposal | None = None
) -> str:
    """Return the HTML of a page.

    Args:
        images: `page_entry` of every image.
        model: what the page says about the model.
        score_threshold: lowest score of a detection.
        proposal: shares of the levels, tried on all images; None for none.
    """
    said = [] if proposal is None else [proposal_sentence(proposal)]
    images = [
        {**image, "ledger": {**image["ledger"], "sentences": [*image["ledger"]["sentences"], *said]}}
        for image in images
    ]
    content = {"model": model, "threshold": score_threshold, "images": images}
    return html_page(__package__, title=f"Explained: {', '.join(image['name'] for image in images[:3])}", data=content)


def name_of(target: Target, class_names: Sequence[str]) -> str:
    """Return the class name of an object, or the number of the class."""
    return class_names[target.label] if target.label < len(class_names) else f"class {target.label}"


def page_entry(story: ImageStory, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what a page shows of an image, without tensors.

    Args:
        story: of the image.
        class_names: by class index; a class without a name is shown as a number.
    """
    height, width = story.image.shape[:2]
    photo = Image.fromarray(story.image)
    photo.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    pyramid = story.runs.pyramid
    names = [name_of(target, class_names) for target in story.targets]

    def boxed(target: Target, **more: Any) -> dict[str, Any]:
        return {"box": _box(target), "name": name_of(target, class_names), **more}

    return {
        "name": story.name,
        "size": [width, height],
        "shown": list(photo.size),
        "jpeg": jpeg_url(photo),
        "levels": [list(level) for level in pyramid.valid_sizes[0].tolist()],
        "views": [_view(story, view, class_names) for view in story.views],
        "scores": _heat(story.maps.scores),
        "attention": _heat(story.maps.attention, root=True),
        "objects": _heat(story.maps.objects),
        "pooling": None if story.maps.pooling is None else _heat(_mean_pooling(story), root=True),
        "truth": None if story.truth is None else [boxed(target) for target in story.truth],
        "explained": {
            str(number): _explained(explanation, names[number]) for number, explanation in story.explanations.items()
        },
        "found": [
            boxed(
                row.target,
                smallest=row.smallest,
                text=found_from(row),
                size=size_of(row.target),
                budgets=list(row.budgets),
                scores=_rounded(row.scores),
            )
            for row in story.found
        ],
        "size_sentences": size_sentences(story.found),
        "no_budget": NO_BUDGET,
        "not_editable": story.not_editable,
        "ledger": {"sentences": ledger_sentences(story.ledger), "rows": _ledger_rows(story)},
        "compare": None
        if story.difference is None
        else [
            boxed(target, kind=kind, words=words)
            for kind, words in KINDS.items()
            for target in getattr(story.difference, kind)
        ],
        "checks": check_sentences(story),
    }


def check_sentences(story: ImageStory) -> list[str]:
    """Return what the sanity check and the second model say."""
    sentences = [] if story.sanity is None else [sanity_sentence(story.sanity)]
    return sentences + ([] if story.difference is None else [difference_sentence(story.difference)])


def _view(story: ImageStory, view: BudgetView, class_names: Sequence[str]) -> dict[str, Any]:
    valid = ~story.runs.pyramid.padding_mask[0]
    layers = [_bits(kept[valid]) for kept in view.prediction.kept]
    same = all(layer == layers[0] for layer in layers)
    return {
        "ratio": view.keep_ratio,
        "own": view.own,
        "kept": layers[:1] if same else layers,
        "detections": [
            {
                "box": _box(target),
                "score": round(target.score or 0.0, 4),
                "name": name_of(target, class_names),
                "color": "rgb({},{},{})".format(*class_color(target.label)),
                "points": _points(story, view, target),
            }
            for target in view.targets
        ],
    }


def _points(story: ImageStory, view: BudgetView, target: Target) -> str | None:
    """Return the sampling points with the most attention: x, y (16 bits), level, weight (8 bits) of each."""
    points = sampling_points(story, view, target)
    if points is None:
        return None
    inside = ((points[:, :2] >= 0) & (points[:, :2] < 1)).all(1)
    points = points[inside]
    points = points[np.argsort(-points[:, 3], kind="stable")[:MAX_POINTS]]
    packed = np.zeros(len(points), dtype=[("x", "<u2"), ("y", "<u2"), ("level", "u1"), ("weight", "u1")])
    packed["x"], packed["y"] = (np.floor(points[:, axis] * 65535) for axis in (0, 1))
    packed["level"] = points[:, 2]
    packed["weight"] = np.round(255 * points[:, 3] / max(points[:, 3].max(initial=0), 1e-12))
    return base64_of(packed.tobytes())


def sampling_points(story: ImageStory, view: BudgetView, target: Target) -> np.ndarray | None:
    """Return (S, 4): x and y in [0, 1] of the image, level and attention weight of all points of a detection.

    None for decoders without sampling points.
    """
    if view.prediction.samples is None or target.query is None:
        return None
    ratios = story.runs.pyramid.valid_ratios(view.prediction.boxes.dtype)[0]  # (L, 2)
    rows = []
    for layer in view.prediction.samples:
        locations = layer.locations[0, target.query] / ratios[:, None]  # (M, L, P, 2)
        levels = locations.new_tensor(range(len(ratios)))[:, None].expand(locations.shape[:-1])
        weights = layer.weights[0, target.query].to(locations)
        values = [locations[..., 0], locations[..., 1], levels, weights]
        rows.append(np.stack([value.flatten().cpu().numpy() for value in values], -1))
    return np.concatenate(rows)


def _explained(explanation: Explanation, name: str) -> dict[str, Any]:
    curves = {kind: getattr(explanation, kind) for kind in ("dropped", "alone", "points")}
    return {
        "sentences": detection_sentences(explanation, name),
        **{kind: None if found is None else comparison_numbers(found) for kind, found in curves.items()},
    }


def comparison_numbers(found: Comparison) -> dict[str, Any]:
    """Return a comparison as plain numbers."""
    return {
        "shares": list(found.explained.shares),
        "counts": list(found.explained.counts),
        "explained": _rounded(found.explained.scores),
        "random": _rounded(found.random.scores),
        "lowest": _rounded(found.lowest),
        "highest": _rounded(found.highest),
        "explained_overlaps": _rounded(found.explained.overlaps),
        "random_overlaps": _rounded(found.random.overlaps),
        "faithfulness": round(found.faithfulness, 4),
    }


def _ledger_rows(story: ImageStory) -> list[list[Any]]:
    """Return the rows of the table: what, refined, of so many tokens, share of the background, cost."""
    rows = [
        [f"layer {row.layer + 1}, level {row.level + 1}", row.kept, row.tokens, row.kept_by_size[BACKGROUND], row.cost]
        for row in story.ledger.rows
    ]
    kept = story.ledger.kept_by_size
    for name, cost in story.ledger.cost_by_size.items():
        if kept.get(name, 1):
            rows.append(
                [name if name in (BACKGROUND, READING) else f"{name} objects", kept.get(name), None, None, cost]
            )
    return [[*row[:4], row[4].gigaflops, None if isnan(row[4].milliseconds) else row[4].milliseconds] for row in rows]


def _mean_pooling(story: ImageStory) -> list[np.ndarray]:
    assert story.maps.pooling is not None
    return [np.mean(levels, axis=0) for levels in zip(*story.maps.pooling, strict=True)]


def _heat(levels: Sequence[np.ndarray] | None, *, root: bool = False) -> str | None:
    """Return a map as bytes, from its lowest to its highest value; `root` takes the square root first."""
    if levels is None:
        return None
    values = np.concatenate([level.ravel() for level in levels]).astype(np.float64)
    values = np.sqrt(values.clip(min=0)) if root else values
    low, high = np.percentile(values, (0.5, 99.5))
    scaled = ((values - low) / max(high - low, 1e-12)).clip(0, 1)
    return base64_of(np.round(255 * scaled).astype(np.uint8).tobytes())


def _bits(mask: Tensor) -> str:
    return base64_of(np.packbits(mask.cpu().numpy()).tobytes())


def _box(target: Target) -> list[float]:
    return [round(value, 1) for value in target.box.tolist()]


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 4) for value in values]
