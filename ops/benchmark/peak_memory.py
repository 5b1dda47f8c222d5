"""Peak extra memory of one call: everything beyond its inputs, with the output and the gradients."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmark import catalog
from benchmark.cases import CASES, Case, make_inputs
from benchmark.timing import Task, call
from benchmark.variants import Variant
from sparse_detr.analysis import memory
from sparse_detr.analysis.memory import can_measure, resident_peak

__all__ = ["answer", "can_measure", "in_fresh_process", "peak_mib", "resident_peak"]


def peak_mib(variant: Variant, task: Task) -> float:
    """Measure in this process: by PyTorch's allocator on the GPU, by the peak of resident memory on the CPU."""
    call(variant, task, make_inputs(task.case.tiny(), seed=0, device=task.device, dtype=task.torch_dtype))()
    inputs = make_inputs(task.case, seed=1, device=task.device, dtype=task.torch_dtype)
    run = call(variant, task, inputs)
    return memory.peak_mib(run, task.device)


def in_fresh_process(variant: Variant, task: Task, program: Path, environment: dict[str, str]) -> float:
    """Run `peak_mib` in a process that did nothing before, through the program's `--peak-memory-of`."""
    order = {**task.describe(), "variant": variant.name, "tiny": task.case.shapes != CASES[0].shapes}
    command = [sys.executable, str(program), "--peak-memory-of", json.dumps(order)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise RuntimeError(f"peak memory of {variant.name}: {result.stderr.strip()[-2000:]}")
    return float(result.stdout.strip().splitlines()[-1])


def answer(order: dict[str, Any]) -> float:
    """Do the part of the new process."""
    torch.set_num_threads(order["threads"])
    case = case_named(order["case"])
    task = Task(
        case.tiny() if order["tiny"] else case,
        **{name: order[name] for name in ("form", "backward", "device", "dtype", "threads")},
    )
    found, _ = catalog.variants_of(task.form, task.device)
    return peak_mib(next(variant for variant in found if variant.name == order["variant"]), task)


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)
