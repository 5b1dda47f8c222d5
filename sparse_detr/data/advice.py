"""Compare data with a config: objects at the training size, tokens of an object, queries, and what to change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparse_detr.data.annotations import CocoFile, boxes_per_image, targets_by_image
from sparse_detr.data.findings import FaultKind, Finding
from sparse_detr.data.plan import Change, Plan

COCO_LIMIT = 100
_SOME = 0.05  # of the boxes, or of the images: fewer are not worth a change
_LARGEST_FACTOR = 2.0  # by which a larger size is proposed; beyond it, cut the images into tiles
_SIZE_STEP, _QUERY_STEP, _RATIO_STEP = 32, 50, 0.05
_SPARE_QUERIES = 1.5
_LARGE = 0.5
_FINE = 4
FINER_LEVEL = (
    "or, in place of larger images, a level of stride 4: resnet(50, num_maps=4) or "
    "mobilenet_v2(strides=(4, 8, 16, 32)) as the backbone, and num_levels one higher"
)
TILES = "cut the images into tiles"
_LEAST_TOKENS = 4  # for each object, among those that are kept


@dataclass(frozen=True)
class Objects:
    """The boxes to train on at the training size.

    Args:
        sides: (T, 2) width and height in pixels.
        shares: (T, 2) of the image's width and height.
        cover: (N,) share of an image's tokens that lie in a box; NaN where the strides are unknown.
        num_tokens: (N,) tokens of an image on all levels.
        counts: (N,) boxes of an image.
        images: (N, 2) width and height of the images that have boxes.
    """

    sides: np.ndarray
    shares: np.ndarray
    cover: np.ndarray
    num_tokens: np.ndarray
    counts: np.ndarray
    images: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(T,) root of the areas, in pixels."""
        return np.sqrt(self.sides.prod(axis=1))

    def tokens(self, stride: int) -> np.ndarray:
        """Return (T,) how many tokens of a level lie in a box, on average over its places."""
        return self.sides.prod(axis=1) / stride**2


def objects_at_training_size(coco: CocoFile, unusable: Collection[str], plan: Plan) -> Objects:
    """Measure the boxes as the training resizes them; without a resize, as in the files."""
    groups = targets_by_image(coco, unusable)
    sides, shares, cover, num_tokens, images = [], [], [], [], []
    for image_id, indices in groups.items():
        image = coco.sound_images[image_id]
        size = np.array([image["width"], image["height"]], dtype=np.float64)
        scale = plan.resize.scale(*size) if plan.resize else 1.0
        low = coco.boxes[indices, :2].clip(0, size)
        high = (coco.boxes[indices, :2] + coco.boxes[indices, 2:]).clip(0, size)
        sides.append((high - low) * scale)
        shares.append((high - low) / size)
        images.append(size * scale)
        inside, total = _tokens_inside(np.concatenate([low, high], axis=1) * scale, size * scale, plan.strides)
        cover.append(inside / total if total else math.nan)
        num_tokens.append(total)
    return Objects(
        np.concatenate(sides).reshape(-1, 2) if sides else np.zeros((0, 2)),
        np.concatenate(shares).reshape(-1, 2) if shares else np.zeros((0, 2)),
        np.array(cover),
        np.array(num_tokens),
        np.array([len(indices) for indices in groups.values()]),
        np.array(images).reshape(-1, 2),
    )


def _tokens_inside(boxes: np.ndarray, size: np.ndarray, strides: tuple[int, ...]) -> tuple[int, int]:
    """Count the tokens of all levels whose centre lies in one of the (T, 4) boxes x1, y1, x2, y2, and all tokens."""
    inside = total = 0
    for stride in strides:
        columns, rows = (np.arange(math.ceil(side / stride)) for side in size)
        taken = np.zeros((len(rows), len(columns)), dtype=bool)
        for x1, y1, x2, y2 in np.ceil(boxes / stride - 0.5).astype(int):  # centres lie at (index + 1/2) * stride
            taken[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
        inside, total = inside + int(taken.sum()), total + taken.size
    return inside, total


def facts_of(objects: Objects, plan: Plan) -> dict[str, float]:
    """Return what the objects are at the training size, for the table of the report."""
    if plan.resize is None or not len(objects.sides):
        return {}
    width, height = np.median(objects.images, axis=0)
    facts = {
        "width of an image at the training size (median)": round(float(width)),
        "height of an image at the training size (median)": round(float(height)),
        "root of an object's area at the training size (median)": round(float(np.median(objects.lengths)), 1),
    }
    for stride in plan.strides:
        facts[f"tokens of an object on the level of stride {stride} (median)"] = round(
            float(np.median(objects.tokens(stride))), 2
        )
    if plan.strides:
        facts["share of the tokens that lie in objects (median of images)"] = round(float(np.median(objects.cover)), 3)
    return facts


def check_objects(
    coco: CocoFile, unusable: Collection[str], objects: Objects, plan: Plan, least: float
) -> list[Finding]:
    """Find what a config cannot learn well from the objects.

    Args:
        least: pixels; an object whose root of the area is below it at the training size is small.
    """
    if not len(objects.sides):
        return []
    total = len(objects.sides)
    findings = []
    small = int((objects.lengths < least).sum())
    where = f"at the training size (short side {plan.resize.short})" if plan.resize else "in the files"
    if small > _SOME * total:
        message = f"of {total} objects are smaller than {least:g} pixels {where} (root of the area)"
        findings.append(Finding("small-objects", "warning", small, message))
    if plan.strides:
        finest = min(plan.strides)
        without = int((objects.tokens(finest) < 1).sum())
        if without > _SOME * total:
            message = f"of {total} objects get less than one token on their best level, that of stride {finest}"
            findings.append(Finding("objects-without-token", "warning", without, message))
    if plan.strides and plan.keep_ratio is not None:
        few = int((_kept_for_each(objects, plan.keep_ratio) < _LEAST_TOKENS).sum())
        if few > _SOME * len(objects.counts):
            message = (
                f"of {len(objects.counts)} images keep fewer than {_LEAST_TOKENS} tokens for each of their objects at "
                f"the keep ratio {plan.keep_ratio:g}"
            )
            findings.append(Finding("few-kept-tokens", "warning", few, message))
    if plan.crops and float(np.median(objects.shares.max(axis=1))) > _LARGE:
        cut = int((objects.shares.max(axis=1) > _LARGE).sum())
        message = f"of {total} objects are longer than half of the image, and the augmentation cuts images"
        findings.append(Finding("crops-of-large-objects", "warning", cut, message))
    return findings


def _kept_for_each(objects: Objects, keep_ratio: float) -> np.ndarray:
    """Return (N,) how many of the kept tokens of an image there are for each of its objects."""
    return keep_ratio * objects.num_tokens / objects.counts


def check_evaluation_limit(coco: CocoFile, unusable: Collection[str], plan: Plan) -> list[Finding]:
    """Find images with more boxes of a class than the scores count."""
    most, names = most_of_a_class(coco, unusable), coco.sound_images
    limit = COCO_LIMIT if plan.evaluation_limit is None else plan.evaluation_limit
    above = [f"{names[key]['file_name']}: {count}" for key, count in most.items() if count > limit]
    if plan.evaluation_limit is None:
        highest = max(most.values(), default=0)
        message = (
            f"images have more boxes of a class than the {COCO_LIMIT} detections that COCO's scores count; training "
            f"raises the limit to {highest} or more, so AP is not that of COCO's rules"
        )
        return FaultKind("more-boxes-than-coco-counts", message, "warning").findings(above)
    message = f"images have more boxes of a class than the {limit} detections of a class that the evaluation counts"
    return FaultKind("more-boxes-than-evaluated", message, "warning").findings(above)


def most_of_a_class(coco: CocoFile, unusable: Collection[str]) -> dict[int, int]:
    """Return the number of boxes of its most frequent class by image id."""
    pairs = Counter(
        (item["image_id"], item["category_id"])
        for item, used in zip(coco.sound_annotations, coco.is_target(unusable))
        if used
    )
    most: dict[int, int] = {}
    for (image_id, _), count in pairs.items():
        most[image_id] = max(most.get(image_id, 0), count)
    return most


def changes_for(
    parts: Sequence[tuple[CocoFile, Collection[str]]], objects: Objects, plan: Plan, least: float
) -> list[Change]:
    """Return the settings to change: queries, detections, the evaluator's limit, sizes, crops, keep ratio.

    Args:
        parts: the training data, and the validation data if there are any, each with its unusable images.
        objects: of the training data.
        plan: the numbers of the config.
        least: pixels, see `check_objects`.
    """
    if not len(objects.sides):
        return []
    return [
        *_of_counts(parts, plan),
        *_of_sizes(objects, plan, least),
        *_of_crops(objects, plan),
        *_of_keep_ratio(objects, plan),
    ]


def _of_counts(parts: Sequence[tuple[CocoFile, Collection[str]]], plan: Plan) -> Iterator[Change]:
    most = max(count for part in parts for count in boxes_per_image(*part).values())
    of_class = max(count for part in parts for count in most_of_a_class(*part).values())
    if plan.num_queries is not None and most > plan.num_queries:
        wanted = _up(most * _SPARE_QUERIES, _QUERY_STEP)
        reason = f"an image has {most} boxes; half as many queries more, since not each finds its object"
        yield Change("model.queries.num_queries", int(wanted), reason)
    if plan.num_detections is not None and most > plan.num_detections:
        yield Change("model.postprocess.num_detections", int(_up(most, _QUERY_STEP)), f"an image has {most} boxes")
    if plan.evaluation_limit is not None and of_class > plan.evaluation_limit:
        reason = f"an image has {of_class} boxes of a class"
        yield Change("dataloader.evaluator.max_dets_per_image", int(_up(of_class, _QUERY_STEP)), reason)


def _of_sizes(objects: Objects, plan: Plan, least: float) -> Iterator[Change]:
    """Propose sizes at which all but a twentieth of the objects are large enough, at most twice as large as now."""
    finest = min(plan.strides, default=0)
    wanted = max(least, finest)
    fifth = float(np.quantile(objects.lengths, _SOME))
    if plan.resize is None or fifth >= wanted:
        return
    factor = min(wanted / fifth, _LARGEST_FACTOR)
    short, longest = (int(_up(side * factor, _SIZE_STEP)) for side in (plan.resize.short, plan.resize.longest))
    lengths = sorted({int(_up(side * factor, _SIZE_STEP)) for side in plan.short_sizes or (plan.resize.short,)})
    reason = f"a twentieth of the objects is below {fifth:.1f} pixels; at this size below {fifth * factor:.1f}"
    yield Change("dataloader.train.mapper.augmentations.short_sizes", lengths, reason)
    for part, key in (("train", "max_size"), ("test", "short_size"), ("test", "max_size")):
        value = short if key == "short_size" else longest
        yield Change(f"dataloader.{part}.mapper.augmentations.{key}", value, "with it")
    if finest > _FINE and len(plan.strides) > 1:
        there, here = (fifth / _FINE) ** 2, (fifth / finest) ** 2
        reason = f"an object of {fifth:.1f} pixels gets {there:.1f} tokens there, {here:.1f} on stride {finest}"
        yield Change("", FINER_LEVEL, reason)
    if wanted / fifth > _LARGEST_FACTOR:
        reason = f"at twice the size a twentieth of the objects is still below {fifth * factor:.1f} pixels"
        yield Change("", TILES, reason)


def _of_crops(objects: Objects, plan: Plan) -> Iterator[Change]:
    middle = float(np.median(objects.shares.max(axis=1)))
    if plan.crops and middle > _LARGE:
        reason = f"the median object is {middle:.0%} as long as its image; crops cut such objects"
        yield Change("dataloader.train.mapper.augmentations.crop_range", None, reason)


def _of_keep_ratio(objects: Objects, plan: Plan) -> Iterator[Change]:
    """Propose a ratio that keeps some tokens for each object, or a smaller one where objects are few."""
    if plan.keep_ratio is None or not plan.strides:
        return
    needed = float(np.quantile(_LEAST_TOKENS * objects.counts / objects.num_tokens, 1 - _SOME))
    most = float(np.quantile(objects.cover, 1 - _SOME))
    if needed > plan.keep_ratio:
        reason = f"it keeps {_LEAST_TOKENS} tokens for each object in 19 of 20 images"
        yield _keep_ratio(min(_up(needed, _RATIO_STEP), 1.0), reason)
        return
    enough = max(_up(2 * most, _RATIO_STEP), _up(needed, _RATIO_STEP))
    if enough < plan.keep_ratio < 1:
        reason = f"in 19 of 20 images at most {most:.0%} of the tokens lie in objects; twice as many may be enough"
        yield _keep_ratio(enough, reason)


def _keep_ratio(value: float, reason: str) -> Change:
    return Change("model.selector.budget.keep_ratio", round(value, 2), reason)


def _up(value: float, step: float) -> float:
    return math.ceil(round(value / step, 6)) * step
