"""Times of detectors by part, all in turn on the same batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

REST = "rest"
Times = dict[str, float]
"""Part -> milliseconds; they sum to the time of the whole call."""


class PartTimer:
    """Times a call and the parts in it. A part inside another one counts for itself alone, so no time counts twice.

    Args:
        parts: part -> its modules.
        device: where they run; on GPUs, events are recorded on the current stream.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], device: str | torch.device = "cpu") -> None:
        self._parts = parts
        self._clock: _WallClock | _CudaClock = _CudaClock() if torch.device(device).type == "cuda" else _WallClock()
        self._marks: list[tuple[str, Any]] = []
        self._running: list[str] = []

    def __call__(self, run: Callable[[], Any]) -> Times:
        """Return the milliseconds of every part, and of the rest; they sum to the wall time of the call."""
        self._running, self._marks = [REST], []
        with self._watched():
            self._clock.synchronize()
            self._mark()
            result = run()
            end = self._clock.now()
            self._clock.synchronize()
        del result
        times = dict.fromkeys([*self._parts, REST], 0.0)
        ends = [moment for _, moment in self._marks[1:]] + [end]
        for (part, start), stop in zip(self._marks, ends, strict=True):
            times[part] += self._clock.milliseconds(start, stop)
        return times

    def _mark(self) -> None:
        """Note that from now on the time counts for the innermost part that runs."""
        self._marks.append((self._running[-1], self._clock.now()))

    @contextmanager
    def _watched(self) -> Iterator[None]:
        handles = []
        try:
            for part, modules in self._parts.items():
                for module in modules:
                    handles.append(module.register_forward_pre_hook(lambda *_, part=part: self._enter(part)))
                    handles.append(module.register_forward_hook(lambda *_: self._leave(), always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, part: str) -> None:
        self._running.append(part)
        self._mark()

    def _leave(self) -> None:
        self._running.pop()
        self._mark()


class _WallClock:
    def now(self) -> float:
        return time.perf_counter()

    def milliseconds(self, start: float, stop: float) -> float:
        return 1e3 * (stop - start)

    def synchronize(self) -> None:
        """Nothing to wait for: the CPU computes in order."""


class _CudaClock:
    def now(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        return start.elapsed_time(stop)

    def synchronize(self) -> None:
        torch.cuda.synchronize()


def rotated(items: Sequence[Any], by: int) -> list[Any]:
    """Return the items, rotated so that none always follows the same other one."""
    by %= len(items)
    return [*items[by:], *items[:by]]


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, between two values by linear interpolation."""
    return float(np.percentile(values, percent))
