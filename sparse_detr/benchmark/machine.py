"""Whether the machine was quiet: the load by other processes, and the drift of a fixed kernel."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch

from sparse_detr.analysis.machine import num_cpus

LEAST_BUSY_CPUS, BUSY_SHARE = 0.1, 0.05  # above both, other processes disturb
MAX_DRIFT = 0.1
SAMPLE_SECONDS = 2.0
KERNEL_SIDE = {"cpu": 512, "cuda": 4096}
REMEDY = "stop what else runs, or give --allow-busy for a table that says so"


@dataclass(frozen=True)
class CpuUse:
    """CPU time up to now, in seconds.

    Args:
        clock: wall time.
        busy: of all processes, on the CPUs that this process may use; with what a hypervisor took away.
        own: of this process without its children.
    """

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> CpuUse:
        """Read the system's counters."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(num_cpus())
        times = psutil.cpu_times(percpu=True)
        used = psutil.Process().cpu_times()
        busy = sum(_busy_seconds(times[cpu]) for cpu in allowed if cpu < len(times))
        return cls(time.perf_counter(), busy, used.user + used.system)

    def others_since(self, before: CpuUse) -> float:
        """Return how many CPUs other processes used on average since `before`."""
        elapsed = self.clock - before.clock
        return max(0.0, (self.busy - before.busy - (self.own - before.own)) / elapsed) if elapsed > 0 else 0.0


def _busy_seconds(times: Any) -> float:
    """Return the seconds of a CPU that were not idle; `guest` is part of `user`."""
    fields = ("user", "nice", "system", "irq", "softirq", "steal", "interrupt", "dpc")
    return sum(getattr(times, field, 0.0) for field in fields)


def sample_load(seconds: float = SAMPLE_SECONDS) -> float:
    """Return how many CPUs other processes use now; sleeps while it looks."""
    before = CpuUse.now()
    time.sleep(seconds)
    return CpuUse.now().others_since(before)


class ReferenceKernel:
    """A fixed matrix product; the same hardware in the same state takes the same time.

    Args:
        device: where it runs.
        clock: returns seconds.
    """

    def __init__(self, device: str | torch.device = "cpu", clock: Any = time.perf_counter) -> None:
        self._device, self._clock = torch.device(device), clock
        side = KERNEL_SIDE.get(self._device.type, 512)
        self._matrix = torch.rand(side, side, generator=torch.Generator().manual_seed(0)).to(self._device)
        self.milliseconds()

    def milliseconds(self, repeats: int = 5) -> float:
        """Return the time of the fastest of some runs."""
        return min(self._run() for _ in range(repeats))

    def _run(self) -> float:
        self._synchronize()
        start = self._clock()
        torch.mm(self._matrix, self._matrix)
        self._synchronize()
        return 1e3 * (self._clock() - start)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def drift(milliseconds: Sequence[float]) -> float:
    """Return how much slower the kernel became: its 90th percentile against its fastest time, minus 1."""
    return float(np.percentile(milliseconds, 90) / min(milliseconds) - 1)


def busy_limit(cpus: int) -> float:
    """Return the number of CPUs that other processes may use."""
    return max(LEAST_BUSY_CPUS, BUSY_SHARE * cpus)


def find_disturbance(load: dict[str, float], reference_ms: Sequence[float] = (), cpus: int | None = None) -> str | None:
    """Return what disturbed the measurement, with the measured load; None if nothing.

    Args:
        load: `before` and `during` the measurement -> the number of CPUs that other processes used.
        reference_ms: times of the reference kernel.
        cpus: number of CPUs that this process may use; None for that of this machine.
    """
    cpus = cpus or num_cpus()
    limit = busy_limit(cpus)
    found = [
        f"other processes used {used:.2f} of {cpus} CPUs {when} the measurement (at most {limit:.2f} is quiet)"
        for when, used in load.items()
        if used > limit
    ]
    slower = drift(reference_ms) if len(reference_ms) else 0.0
    if slower > MAX_DRIFT:
        found.append(
            f"a fixed kernel became {slower:.0%} slower during the measurement (at most {MAX_DRIFT:.0%} is steady), so "
            "the machine is throttled or shared"
        )
    return " and ".join(found) or None
