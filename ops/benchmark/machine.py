"""The machine and the software that numbers were taken with."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PEERS = ("torch-ms-deform-attn", "transformers", "deformops", "triton")
# Temporaries stay mapped between calls: the state in which PyTorch's composite forms look best.
CLEAN_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
}


def machine_record(device: str) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the numbers."""
    from sparse_detr import ops

    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cpu_path": ops.native.cpu_isa() or "not built",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "allocator": allocator(),
        "backends": {name: reason or "available" for name, reason in ops.available_backends().items()},
        "peers": {name: version(name) for name in PEERS},
        "gpu": gpu() if device == "cuda" else None,
    }


def commit() -> str:
    """Return the commit of this checkout, with a mark if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return result.stdout.strip() or "unknown"


def cpu_model() -> str:
    for line in proc_lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cpu_flags() -> list[str]:
    """Return the flags that the CPU kernels and their peers use."""
    for line in proc_lines("/proc/cpuinfo"):
        if line.startswith("flags"):
            flags = line.split(":", 1)[1].split()
            return [flag for flag in flags if flag.startswith(("avx", "fma", "f16c", "amx"))]
    return []


def proc_lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def allocator() -> dict[str, str]:
    """Return the settings that change how memory is mapped; {} is glibc as it comes."""
    prefixes = ("MALLOC_", "LD_PRELOAD", "GLIBC_TUNABLES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(prefixes)}


def allocator_name() -> str:
    settings = allocator()
    if not settings:
        return f"{platform.libc_ver()[0] or 'the C library'}, default settings"
    return "clean" if settings == CLEAN_ALLOCATOR else " ".join(f"{key}={value}" for key, value in settings.items())


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": round(getattr(properties, "L2_cache_size", 0) / 2**20, 1),
        "cuda": torch.version.cuda,
    }


def copy_bandwidth(device: str, *, megabytes: int) -> float:
    """Return the GB/s that a large copy reads and writes."""
    source = torch.ones(megabytes * 250_000, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * megabytes * 1e6 / statistics.median(seconds[1:]) / 1e9


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
