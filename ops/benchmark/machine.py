"""The machine and the software that numbers were taken with."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from sparse_detr.analysis.machine import (
    CLEAN_ALLOCATOR,
    allocator,
    allocator_name,
    cpu_flags,
    cpu_model,
    gpu,
    num_cpus,
    version,
)

__all__ = ["CLEAN_ALLOCATOR", "allocator", "allocator_name", "copy_bandwidth", "machine_record", "synchronize"]

PEERS = ("torch-ms-deform-attn", "transformers", "deformops", "triton")


def machine_record(device: str) -> dict[str, Any]:
    """Return what a reader needs to judge or repeat the numbers."""
    from sparse_detr import ops

    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "cpu": cpu_model(),
        "cpu_flags": cpu_flags(),
        "cpu_path": ops.native.cpu_isa() or "not built",
        "cores": num_cpus(),
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
