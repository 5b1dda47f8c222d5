"""What a training says while it runs: one short line in the terminal, all losses in the log file."""

import logging
import resource
import sys
from collections.abc import Callable, Iterator

import torch
from detectron2.utils.events import CommonMetricPrinter, EventStorage, EventWriter, get_event_storage

from sparse_detr.config.duration import duration_text

PROGRESS = logging.getLogger("sparse_detr.progress")
ALL_LOSSES = logging.getLogger("detectron2.utils.events")  # of CommonMetricPrinter
TOTAL = "total_loss"
MAIN_LOSSES = ("loss_class", "loss_bbox", "loss_giou")
_WINDOW = 20  # iterations that the shown losses are the median of
_MANY = 1000  # iterations that the shown time is the median of


class ConsoleLine(EventWriter):
    """Logs one line: iteration, ETA, losses, score so far, learning rate, time of an iteration, peak memory.

    Args:
        max_iter: the last iteration of the training, in the config.
        metric: name of the score that chooses the best model.
        best: returns the best score so far; None if there is none.
        time_left: returns the seconds that the training may still take; None for no limit.
        device: of the training.
    """

    def __init__(
        self,
        *,
        max_iter: int,
        metric: str,
        best: Callable[[], float | None],
        time_left: Callable[[], float] | None = None,
        device: str = "cpu",
    ) -> None:
        self._max_iter, self._metric, self._best = max_iter, metric, best
        self._time_left, self._device = time_left, torch.device(device)

    def write(self) -> None:
        """Log the line of the current iteration; nothing if it is written already, as at the end of a training."""
        storage = get_event_storage()
        if is_of_this_iteration(storage):
            PROGRESS.info("  ".join(self._parts(storage)))

    def _parts(self, storage: EventStorage) -> Iterator[str]:
        done = storage.iter + 1
        yield f"iter {done}/{self._max_iter}"
        seconds = storage.history("time").median(_MANY) if "time" in storage.histories() else None
        if seconds is not None:
            left = seconds * (self._max_iter - done)
            yield f"ETA {duration_text(left if self._time_left is None else max(0.0, min(left, self._time_left())))}"
        yield f"loss {smoothed(storage, TOTAL):.4g}"
        for name in shown_losses(storage):
            yield f"{name.removeprefix('loss_')} {smoothed(storage, name):.3g}"
        yield from self._score(storage)
        if "lr" in storage.histories():
            yield f"lr {storage.history('lr').latest():.3g}"
        if seconds is not None:
            yield f"{seconds:.3g} s/iter"
        yield f"{peak_memory(self._device) / 2**30:.2f} GiB"

    def _score(self, storage: EventStorage) -> Iterator[str]:
        latest, best = storage.latest().get(self._metric), self._best()
        label = self._metric.replace("bbox/", "")
        if latest is not None:
            yield f"{label} {latest[0]:.4g}" + ("" if best is None else f" (best {best:.4g})")
        elif best is not None:
            yield f"{label} best {best:.4g}"


class AllLosses(CommonMetricPrinter):
    """Detectron2's line with all losses in the log file; in the terminal `ConsoleLine` stands for it."""

    def __init__(self, max_iter: int) -> None:
        super().__init__(max_iter)
        self._filters = [
            (handler, _without_all_losses if is_terminal(handler) else _without_progress)
            for name in ("detectron2", "sparse_detr")
            for handler in logging.getLogger(name).handlers
            if isinstance(handler, logging.StreamHandler)
        ]
        for handler, rule in self._filters:
            handler.addFilter(rule)

    def write(self) -> None:
        """Log the line, unless there was no iteration since the last one."""
        if is_of_this_iteration(get_event_storage()):
            super().write()

    def close(self) -> None:
        """Let the handlers of the log show everything again."""
        for handler, rule in self._filters:
            handler.removeFilter(rule)


def _without_all_losses(record: logging.LogRecord) -> bool:
    return record.name != ALL_LOSSES.name


def _without_progress(record: logging.LogRecord) -> bool:
    return record.name != PROGRESS.name


def is_terminal(handler: logging.StreamHandler) -> bool:
    """Return whether the handler writes to the standard output, which may be a terminal, and not to a file."""
    return handler.stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)


def is_of_this_iteration(storage: EventStorage) -> bool:
    """Return whether the losses in the storage are of its current iteration."""
    return storage.latest().get(TOTAL, (0.0, -1))[1] == storage.iter


def smoothed(storage: EventStorage, name: str) -> float:
    """Return the median of the last iterations."""
    return storage.history(name).median(storage.count_samples(name, _WINDOW))


def shown_losses(storage: EventStorage) -> list[str]:
    """Return the losses of the last decoder layer; in other models the three largest ones."""
    names = [name for name in storage.histories() if name.startswith("loss")]
    main = [name for name in MAIN_LOSSES if name in names]
    return main or sorted(names, key=lambda name: -smoothed(storage, name))[:3]


def peak_memory(device: torch.device) -> float:
    """Return the bytes that the training has held at most: of tensors on a GPU, else of the process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
