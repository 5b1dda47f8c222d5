"""Detect in the pictures of a shard: read ahead in threads, and run pictures of one size together."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from sparse_detr.analysis.machine import num_cpus
from sparse_detr.errors import ImageError
from sparse_detr.predict.job import Found

if TYPE_CHECKING:
    from sparse_detr.predictor import Predictor

MOST_READERS = 4
"""Threads that decode and resize; decoding releases Python's lock."""
AHEAD = 4
"""Batches that are read while one is detected, and that wait for others of their size."""


def readers_of(device: torch.device) -> int:
    """Return how many threads should read ahead for a model on a device.

    On a CPU only as many as there are cores that PyTorch leaves free: a reader beside a thread of the model delays all
    its threads, which wait for each other after each operation.
    """
    if device.type != "cpu":
        return MOST_READERS
    return min(MOST_READERS, max(num_cpus() - torch.get_num_threads(), 0))


def detect_pictures(
    predictor: Predictor,
    pictures: Iterable[tuple[int, str, Any]],
    *,
    batch_size: int,
    readers: int = MOST_READERS,
    **options: Any,
) -> Iterator[Found]:
    """Yield what is found in every picture, not in their order.

    Pictures of one size after preprocessing go through the model together, so that nothing is padded and each gives
    what it gives alone, up to rounding. At most `AHEAD` batches wait for company; then the largest group goes.

    Args:
        predictor: the detector.
        pictures: number, name, and what a predictor takes, or the error of a picture that cannot be read.
        batch_size: the largest number of pictures of a batch.
        readers: threads that read ahead, see `readers_of`; with 0 each picture is read when its turn comes.
        options: as in a call of the predictor.
    """
    groups: dict[Any, list[tuple[int, str, Any]]] = {}
    for number, name, item in read_ahead(predictor, pictures, AHEAD * batch_size, readers):
        if isinstance(item, ImageError):
            yield Found(number, name, problem=str(item))
            continue
        size = tuple(item["image"].shape)
        groups.setdefault(size, []).append((number, name, item))
        full = size if len(groups[size]) == batch_size else _largest(groups, AHEAD * batch_size)
        if full is not None:
            yield from _detect(predictor, groups.pop(full), options)
    for group in groups.values():
        yield from _detect(predictor, group, options)


def _largest(groups: dict[Any, list[Any]], most: int) -> Any:
    """Return the size of the largest group if too many pictures wait, else None."""
    if sum(map(len, groups.values())) < most:
        return None
    return max(groups, key=lambda size: len(groups[size]))


def read_ahead(
    predictor: Predictor, pictures: Iterable[tuple[int, str, Any]], ahead: int, readers: int
) -> Iterator[tuple[int, str, Any]]:
    """Yield number, name, and the model's input or an `ImageError`, in order; threads prepare the next ones, if any."""

    def prepared(picture: Any) -> Any:
        if isinstance(picture, ImageError):
            return picture
        try:
            return predictor.preprocess(picture)
        except ImageError as error:
            return error

    if readers == 0:
        for number, name, picture in pictures:
            yield number, name, prepared(picture)
        return
    rest = iter(pictures)
    with ThreadPoolExecutor(readers) as pool:
        waiting: deque[tuple[int, str, Future[Any]]] = deque()

        def start(count: int) -> None:
            for number, name, picture in islice(rest, count):
                waiting.append((number, name, pool.submit(prepared, picture)))

        start(ahead)
        while waiting:
            number, name, future = waiting.popleft()
            item = future.result()
            start(1)
            yield number, name, item


def _detect(predictor: Predictor, group: list[tuple[int, str, Any]], options: dict[str, Any]) -> Iterator[Found]:
    results = predictor.detect([item for _, _, item in group], **options)
    for (number, name, item), instances in zip(group, results, strict=True):
        yield found_of(number, name, (item["height"], item["width"]), instances)


def found_of(number: int, name: str, size: tuple[int, int], instances: Any) -> Found:
    """Return the detections of a picture of a size (height, width) as plain numbers."""
    return Found(
        number,
        name,
        width=size[1],
        height=size[0],
        boxes=instances.pred_boxes.tensor.tolist(),
        scores=instances.scores.tolist(),
        labels=instances.pred_classes.tolist(),
    )


def detect_in_slices(
    predictor: Predictor, pictures: Iterable[tuple[int, str, Any]], side: int, overlap: float, **options: Any
) -> Iterator[Found]:
    """Yield what is found in slices of every picture, see `by_slices`.

    Args:
        predictor, pictures: as in `detect_pictures`.
        side, overlap: of the slices.
        options: as in a call of the predictor; `top_k` is of a whole picture.
    """
    from sparse_detr.predict.slicing import by_slices

    most = options.pop("top_k", None)
    detect = by_slices(predictor, side, overlap, **options)
    for number, name, picture in pictures:
        try:
            if isinstance(picture, ImageError):
                raise picture
            image = predictor.read(picture)
        except ImageError as error:
            yield Found(number, name, problem=str(error))
            continue
        found = detect(image)
        height, width = image.shape[:2]
        yield Found(number, name, width, height, found.boxes[:most], found.scores[:most], found.labels[:most])
