"""Facts about the machine and the software that numbers were taken with."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Temporaries stay mapped between calls: the state in which PyTorch's composite forms look best.
CLEAN_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


def cpu_model() -> str:
    """Return the name of the CPU."""
    for line in _proc_lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Return the flags that the CPU kernels and their peers use."""
    for line in _proc_lines("/proc/cpuinfo"):
        if line.startswith("flags"):
            flags = line.split(":", 1)[1].split()
            return [flag for flag in flags if flag.startswith(("avx", "fma", "f16c", "amx"))]
    return []


def _proc_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def num_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allocator() -> dict[str, str]:
    """Return the settings that change how memory is mapped; {} is glibc as it comes."""
    prefixes = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)}


def allocator_name() -> str:
    """Return the allocator's settings in words."""
    settings = allocator()
    if not settings:
        return f"{platform.libc_ver()[0] or 'the C library'}, default settings"
    return "clean" if settings == CLEAN_ALLOCATOR else " ".join(f"{key}={value}" for key, value in settings.items())


def use_clean_allocator() -> None:
    """Start this program anew with the clean allocator unless it has it: a process reads the settings at its start."""
    if any(os.environ.get(name) != value for name, value in CLEAN_ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **CLEAN_ALLOCATOR})


def version(package: str) -> str:
    """Return the version of a distribution, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def gpu() -> dict[str, Any]:
    """Return the facts of the first GPU."""
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
        "cuda": torch.version.cuda,
    }
