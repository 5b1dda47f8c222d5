"""Peak memory of a call: everything beyond what was there before it."""

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_mib(run: Callable[[], Any], device: str | torch.device, calls: int = 1) -> float:
    """Return the peak extra memory of `run()` in MiB, with its result.

    On GPUs it is PyTorch's own number; on the CPU the growth of the process's resident memory, so `run` should have
    been called before: what the first call sets up would count.

    Args:
        device: the device that `run` computes on.
        calls: how often `run` is called. The smallest peak holds: on the CPU what other threads of the process take in
            the meantime counts too, a MiB now and then.

    Raises:
        RuntimeError: this system has no such measure, see `can_measure`.
    """
    if not can_measure(device):
        raise RuntimeError(f"peak memory on {device} cannot be measured on this system; see can_measure()")
    gc.collect()
    measure = cuda_peak if torch.device(device).type == "cuda" else resident_peak
    return min(measure(run) for _ in range(calls))


def can_measure(device: str | torch.device) -> bool:
    """Return whether there is a measure: on GPUs of CUDA, and on Linux with glibc."""
    kind = torch.device(device).type
    if kind != "cpu":
        return kind == "cuda"
    return CLEAR.exists() and hasattr(ctypes.CDLL(None), "malloc_trim")


def cuda_peak(run: Callable[[], Any]) -> float:
    """Return the peak of PyTorch's allocator beyond the memory in use, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del result
    return (peak - before) / 2**20


def resident_peak(run: Callable[[], Any]) -> float:
    """Measure resident memory, after freed memory went back to the system: it would be used again unseen."""
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")  # sets the high-water mark to what is resident now
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    del result
    return (peak - before) / 2**10


def _resident(field: str) -> int:
    """Return a field of the process's status in KiB."""
    found = re.search(rf"{field}:\s+(\d+)", STATUS.read_text())
    assert found, field
    return int(found[1])
