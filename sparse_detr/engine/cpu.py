"""What makes a training on the CPU faster without a change of any number: waiting threads and freed memory."""

import ctypes
import gc
import logging
import os
import sys
from contextlib import suppress

import torch

from sparse_detr._threads import describe_waiting

logger = logging.getLogger(__name__)

# Numbers of `mallopt` in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_NEVER = 2**31 - 1
_TOP_PAD_BYTES = 2**28
# A user who has set one of these has chosen.
_ALLOCATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def set_up_cpu(device: str) -> None:
    """Prepare this process for a training on the CPU, and log what was chosen; nothing on other devices."""
    if torch.device(device).type != "cpu":
        return
    kept = keep_freed_memory()
    logger.info(
        f"CPU threads: {torch.get_num_threads()} (OMP_NUM_THREADS); waiting threads: {describe_waiting()}; "
        f"freed memory: {'kept for the next iteration' if kept else 'as the system does'}"
    )
    if busy := other_load():
        logger.warning(
            f"other programs keep about {busy:.1f} of the {os.cpu_count()} cores busy; the threads of a step wait for "
            "the slowest, so that fewer threads may be faster: OMP_NUM_THREADS=1"
        )


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory of the process for its next use; return whether this was set.

    By default it maps every block above 32 MiB anew and returns free memory at its end, so that the system clears the
    memory of large activations in every iteration. The memory of the process stays at its peak instead.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in _ALLOCATOR_VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    values = ((_MMAP_THRESHOLD, _NEVER), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _TOP_PAD_BYTES))
    return all(mallopt(parameter, value) == 1 for parameter, value in values)


def give_back_freed_memory() -> None:
    """Let glibc return the freed memory of the process to the system, so that what it holds is what it uses."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def other_load() -> float:
    """Return how many cores other programs kept busy in the last minute, if the threads of this one lack them; else 0.

    A process that has just started is not in the load yet.
    """
    try:
        load = os.getloadavg()[0]
    except OSError:
        return 0.0
    return load if load + torch.get_num_threads() > (os.cpu_count() or 1) + 0.5 and torch.get_num_threads() > 1 else 0.0
