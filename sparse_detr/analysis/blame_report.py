"""Tables, sums and advice about the objects that a detector found and missed."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sparse_detr.analysis.blame import (
    BEATEN,
    FOUND,
    LOW_SCORE,
    MISCLASSIFIED,
    MISSES,
    NOT_PROPOSED,
    NOT_SELECTED,
    TIDE_MISSES,
    VERDICTS,
)
from sparse_detr.analysis.tables import markdown_table

SIZES = ("small", "medium", "large")
_LIMITS = (32**2, 96**2)


@dataclass(frozen=True)
class BlamedObject:
    """One true object, and what became of it.

    Args:
        image_id, annotation_id: of the COCO file.
        file_name: of the image.
        class_name: of the object.
        size: `small`, `medium` or `large`, see `size_of`.
        box: (x0, y0, x1, y1) in pixels of the image.
        verdict, detail, tide, best_iou: see `blame.Verdict`.
        seen_as: the best class of the final box with the highest IoU; "" without boxes.
        token_share: share of the tokens on it that are selected.
        token_shares: the same of every level; NaN on levels without tokens on it.
        is_hit: whether any token on it is selected.
    """

    image_id: int
    annotation_id: int
    file_name: str
    class_name: str
    size: str
    box: tuple[float, float, float, float]
    verdict: str
    detail: str
    tide: str
    best_iou: float
    seen_as: str
    token_share: float
    token_shares: tuple[float, ...]
    is_hit: bool


def size_of(area: float) -> str:
    """Return COCO's size of an object by its `area` in pixels of the image: below 32², below 96², or more.

    COCO counts an area of exactly 32² or 96² in both sizes; here it is of the larger one, so that the sizes sum up.
    """
    return SIZES[sum(area >= limit for limit in _LIMITS)]


def verdict_counts(objects: Iterable[BlamedObject]) -> dict[str, int]:
    """Return how many objects have each of `VERDICTS`."""
    counts = Counter(item.verdict for item in objects)
    return {verdict: counts[verdict] for verdict in VERDICTS}


def counts_by(objects: Sequence[BlamedObject], field: str, values: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return `verdict_counts` of the objects with every value of a field."""
    return {value: verdict_counts(item for item in objects if getattr(item, field) == value) for value in values}


def tide_join(objects: Sequence[BlamedObject]) -> dict[str, dict[str, int]]:
    """Return how many missed objects have each blame (outer key) and TIDE's class of a miss (inner key)."""
    counts = Counter((item.verdict, item.tide) for item in objects)
    return {blame: {tide: counts[blame, tide] for tide in TIDE_MISSES} for blame in MISSES}


def recall_by_size(objects: Sequence[BlamedObject]) -> dict[str, dict[str, Any]]:
    """Return the token recall of the objects of every size and of all.

    Each has `objects`, `hit` (share of objects that a selected token hits), `share` (mean share of the tokens on an
    object that are selected) and `share_of_levels`; None where there is nothing to average.
    """
    return {size: _recall([item for item in objects if size in ("all", item.size)]) for size in (*SIZES, "all")}


def _recall(objects: Sequence[BlamedObject]) -> dict[str, Any]:
    levels = zip(*(item.token_shares for item in objects), strict=True)
    return {
        "objects": len(objects),
        "hit": _mean([float(item.is_hit) for item in objects]),
        "share": _mean([item.token_share for item in objects]),
        "share_of_levels": [_mean(list(level)) for level in levels],
    }


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else None


def advice(objects: Sequence[BlamedObject], *, score_threshold: float, has_selector: bool) -> list[str]:
    """Return sentences that say what to do, the most frequent blame first."""
    counts = verdict_counts(objects)
    missed = len(objects) - counts[FOUND]
    if not objects:
        return ["there are no true objects in these images, so nothing can be missed"]
    if not missed:
        return [f"all {len(objects)} objects are found"]
    sentences = [
        f"{counts[blame]} of {missed} misses: {blame}; {_remedy(blame, objects, score_threshold)}"
        for blame in sorted(MISSES, key=lambda blame: -counts[blame])
        if counts[blame]
    ]
    if has_selector and not counts[NOT_SELECTED]:
        sentences.append("no miss is the selector's: a selected token lies on every missed object")
    return sentences


def _remedy(blame: str, objects: Sequence[BlamedObject], score_threshold: float) -> str:
    if blame == NOT_SELECTED:
        return "these are the selector's: raise the budget, or give fine levels more of it"
    if blame == NOT_PROPOSED:
        return "the proposals do not see them: more queries (num_queries), or a longer training"
    if blame == BEATEN:
        low = sum(item.detail == LOW_SCORE for item in objects)
        of_all = sum(item.verdict == BEATEN for item in objects)
        below = f"below {score_threshold:g}, or " if score_threshold else ""
        return (
            f"{low} scored too low ({below}too many others are better): a longer training, or a lower threshold; "
            f"{of_all - low} lost their box to a neighbour"
        )
    if blame == MISCLASSIFIED:
        pairs = Counter((item.class_name, item.seen_as) for item in objects if item.verdict == MISCLASSIFIED)
        (true, seen), number = pairs.most_common(1)[0]
        return f"look at these classes, most often {true} seen as {seen} ({number})"
    return "no final box fits them: larger images, more decoder layers, or a longer training"


def summary(objects: Sequence[BlamedObject], class_names: Sequence[str]) -> dict[str, Any]:
    """Return all sums as plain numbers; those of sizes and of classes sum to the total."""
    return {
        "objects": len(objects),
        "verdicts": verdict_counts(objects),
        "by_size": counts_by(objects, "size", SIZES),
        "by_class": counts_by(objects, "class_name", class_names),
        "beaten_details": dict(Counter(item.detail for item in objects if item.detail)),
        "token_recall": recall_by_size(objects),
        "tide_of_misses": tide_join(objects),
    }


def as_tables(found: Mapping[str, Any], tide: Mapping[str, Any] | None) -> str:
    """Return the tables of a `summary` as Markdown.

    Args:
        found: a `summary`.
        tide: TIDE's `counts` and `delta_ap`; None if they are unknown.
    """
    total = {"all": found["verdicts"]}
    parts = [
        _verdict_table("size", found["by_size"] | total),
        _verdict_table("class", found["by_class"] | total),
        _recall_table(found["token_recall"]),
        _tide_table(found["tide_of_misses"]),
    ]
    if tide is not None:
        names = [name for name in ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss") if name in tide["counts"]]
        rows = (
            ["errors", *(str(tide["counts"][name]) for name in names)],
            ["AP that they cost", *(f"{100 * tide['delta_ap'][name]:.1f}" for name in names)],
        )
        parts.append(markdown_table(["TIDE", *names], rows))
    return "\n\n".join(parts)


def _verdict_table(title: str, rows: Mapping[str, Mapping[str, int]]) -> str:
    cells = (
        [name, str(sum(counts.values())), *(str(counts[verdict]) for verdict in VERDICTS)]
        for name, counts in rows.items()
    )
    return markdown_table([title, "objects", *VERDICTS], cells)


def _recall_table(recalls: Mapping[str, Mapping[str, Any]]) -> str:
    levels = max(len(recall["share_of_levels"]) for recall in recalls.values())
    header = ["token recall", "objects", "hit", "share", *(f"level {number}" for number in range(1, levels + 1))]
    return markdown_table(
        header,
        (
            [
                size,
                str(recall["objects"]),
                *map(_percent, (recall["hit"], recall["share"])),
                *map(_percent, recall["share_of_levels"] or [None] * levels),
            ]
            for size, recall in recalls.items()
        ),
    )


def _tide_table(join: Mapping[str, Mapping[str, int]]) -> str:
    rows = ([blame, *(str(count) for count in counts.values())] for blame, counts in join.items())
    total = ["all misses", *(str(sum(counts[tide] for counts in join.values())) for tide in TIDE_MISSES)]
    return markdown_table(["misses by TIDE's class", *TIDE_MISSES], [*rows, total])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def as_csv(objects: Sequence[BlamedObject]) -> str:
    """Return a row an object; empty cells on levels without tokens on it."""
    levels = max((len(item.token_shares) for item in objects), default=0)
    names = [name for name in BlamedObject.__dataclass_fields__ if name not in ("box", "token_shares")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    shares = [f"token_share_level{number}" for number in range(1, levels + 1)]
    writer.writerow([*names, "x0", "y0", "x1", "y1", *shares])
    for item in objects:
        facts = asdict(item)
        of_levels = ["" if math.isnan(share) else f"{share:.4f}" for share in item.token_shares]
        writer.writerow([*(_cell(facts[name]) for name in names), *(f"{side:.2f}" for side in item.box), *of_levels])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value


def worst_images(objects: Sequence[BlamedObject], number: int) -> list[tuple[int, list[BlamedObject]]]:
    """Return the images with most misses, and of these the ones with the largest share of them first: id, objects."""
    by_image: dict[int, list[BlamedObject]] = {}
    for item in objects:
        by_image.setdefault(item.image_id, []).append(item)

    def rank(entry: tuple[int, list[BlamedObject]]) -> tuple[float, float, int]:
        missed = sum(item.verdict != FOUND for item in entry[1])
        return -missed, -missed / len(entry[1]), entry[0]

    ranked = sorted(by_image.items(), key=rank)
    return [entry for entry in ranked[:number] if rank(entry)[0] < 0]
