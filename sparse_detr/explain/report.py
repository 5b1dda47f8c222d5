"""What an explanation leaves behind: pictures, arrays, numbers and text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from sparse_detr.explain.faithfulness import Target
from sparse_detr.explain.image import ImageStory
from sparse_detr.explain.ledger import Cost, Ledger
from sparse_detr.explain.minimal_budget import by_size, size_of
from sparse_detr.explain.page import KINDS, check_sentences, comparison_numbers, name_of, sampling_points
from sparse_detr.explain.pictures import causes_page, difference_page, found_page
from sparse_detr.explain.words import detection_sentences, found_from, ledger_sentences, size_sentences
from sparse_detr.files import write_atomically
from sparse_detr.visualization.pictures import write_picture


def write_pictures(prefix: Path, story: ImageStory, class_names: Sequence[str]) -> None:
    """Write `<prefix>_causes.png`, `<prefix>_found.png` and `<prefix>_compare.png`, where there is something to show.

    Raises:
        UserError: a file cannot be written.
    """
    pages = {}
    if story.explanations:
        pages["causes"] = causes_page(story, class_names)
    if story.found:
        pages["found"] = found_page(story, class_names)
    if story.difference is not None:
        pages["compare"] = difference_page(story)
    for name, page in pages.items():
        write_picture(Path(f"{prefix}_{name}.png"), page)


def write_arrays(path: Path, story: ImageStory) -> None:
    """Write the arrays of an image, see `arrays_of`.

    Raises:
        UserError: the file cannot be written.
    """
    arrays = arrays_of(story)
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))  # type: ignore[arg-type]


def arrays_of(story: ImageStory) -> dict[str, np.ndarray]:
    """Return the arrays of an image.

    Returns:
        `cells` (N, 3): level, row and column of every token; `budgets` (V,): keep ratios, NaN for a model without a
        budget; `kept` (V, layers, N) bool: refined tokens; `scores` and `attention` (N,), where the model has them; for
        every explained detection, by its number from 1: `under_1` (N,) bool: tokens under its box, `attention_1` (N,)
        of its query, `points_1` (S, 4): x and y in [0, 1] of the image, level, attention weight.
    """
    runs = story.runs
    valid = (~runs.pyramid.padding_mask[0]).cpu().numpy()
    arrays = {
        "cells": runs.pyramid.cells.cpu().numpy()[valid],
        "budgets": np.array([np.nan if view.keep_ratio is None else view.keep_ratio for view in story.views]),
        "kept": np.array([[kept.cpu().numpy()[valid] for kept in view.prediction.kept] for view in story.views]),
    }
    for name, values in (("scores", runs.output.token_scores), ("attention", runs.output.attention_map)):
        if values is not None:
            arrays[name] = values[0].float().cpu().numpy()[valid]
    for number, explanation in story.explanations.items():
        arrays[f"under_{number + 1}"] = explanation.under.cpu().numpy()[valid]
        points = sampling_points(story, story.views[story.own_view], explanation.target)
        if explanation.attention is not None and points is not None:
            arrays[f"attention_{number + 1}"] = explanation.attention.float().cpu().numpy()[valid]
            arrays[f"points_{number + 1}"] = points
    return arrays


def numbers_of(story: ImageStory, class_names: Sequence[str], file: str) -> dict[str, Any]:
    """Return everything about an image as plain numbers and texts, for JSON."""

    def plain(target: Target) -> dict[str, Any]:
        return {
            "box": [round(value, 2) for value in target.box.tolist()],
            "class": name_of(target, class_names),
            "size": size_of(target),
            "score": None if target.score is None else round(target.score, 4),
        }

    explained = {
        number: {
            "sentences": detection_sentences(explanation, name_of(explanation.target, class_names)),
            "score_with_all_tokens_under_the_box": round(explanation.forced, 4),
            **{
                kind: None if found is None else comparison_numbers(found)
                for kind, found in (
                    ("dropped", explanation.dropped),
                    ("alone", explanation.alone),
                    ("points", explanation.points),
                )
            },
        }
        for number, explanation in story.explanations.items()
    }
    difference = story.difference
    return {
        "file": file,
        "height": story.image.shape[0],
        "width": story.image.shape[1],
        "cannot_drop_tokens": story.not_editable,
        "detections": [
            {"number": number + 1, **plain(target), "explanation": explained.get(number)}
            for number, target in enumerate(story.targets)
        ],
        "found_from": [
            {
                **plain(row.target),
                "smallest_budget": row.smallest,
                "lost_again_at": list(row.lost_again),
                "text": found_from(row),
                "budgets": list(row.budgets),
                "scores": [round(score, 4) for score in row.scores],
            }
            for row in story.found
        ],
        "found_by_size": by_size(story.found) if story.found else None,
        "ledger": _ledger(story.ledger),
        "sanity": None if story.sanity is None else asdict(story.sanity),
        "difference": None
        if difference is None
        else {
            **{kind: [plain(target) for target in getattr(difference, kind)] for kind in KINDS},
            "shared_tokens": difference.shared_tokens,
        },
    }


def _ledger(ledger: Ledger) -> dict[str, Any]:
    return {
        "gigaflops": ledger.gigaflops,
        "other_gigaflops": ledger.other_gigaflops,
        "background_share": ledger.background_share,
        "kept_by_size": ledger.kept_by_size,
        "cost_by_size": {name: _cost(cost) for name, cost in ledger.cost_by_size.items()},
        "rows": [
            {**asdict(row), "refining": _cost(row.refining), "reading": _cost(row.reading)} for row in ledger.rows
        ],
    }


def _cost(cost: Cost) -> dict[str, float | None]:
    return {**asdict(cost), "milliseconds": None if isnan(cost.milliseconds) else cost.milliseconds}


def text_of(story: ImageStory, class_names: Sequence[str]) -> str:
    """Return what is printed about an image."""
    lines = [f"{story.name}: {len(story.targets)} detections"]
    if story.not_editable:
        lines.append(f"  no causal tests: {story.not_editable}")
    for number, explanation in story.explanations.items():
        sentences = detection_sentences(explanation, name_of(explanation.target, class_names))
        lines += [f"  detection {number + 1}: {sentences[0]}", *(f"    {sentence}" for sentence in sentences[1:])]
    lines += [f"  {sentence}" for sentence in size_sentences(story.found)]
    lines += [f"  {sentence}" for sentence in [*ledger_sentences(story.ledger), *check_sentences(story)]]
    return "\n".join(lines)
