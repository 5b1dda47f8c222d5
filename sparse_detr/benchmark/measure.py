"""Measure contestants side by side and record everything: times, memory, FLOPs, AP, load and drift."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from sparse_detr.analysis import memory
from sparse_detr.analysis.machine import allocator_name, cpu_model, gpu, num_cpus, version
from sparse_detr.benchmark.contestants import Batch, Contestant
from sparse_detr.benchmark.images import ImageStream
from sparse_detr.benchmark.machine import CpuUse, ReferenceKernel, find_disturbance
from sparse_detr.benchmark.timing import PartTimer, Times, rotated
from sparse_detr.ops import native

Record = dict[str, Any]
FORMAT = 1


@dataclass
class Measurement:
    """The raw numbers of a run.

    Args:
        times: contestant -> batch size -> the times of every round.
        sizes: (h, w) of every image, as the models got it.
        padding: share of every batch that is padding.
        reference_ms: times of the reference kernel, one a round.
        load: how many CPUs other processes used `before` and `during` the rounds.
    """

    times: dict[str, dict[int, list[Times]]] = field(default_factory=dict)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    padding: list[float] = field(default_factory=list)
    reference_ms: list[float] = field(default_factory=list)
    load: dict[str, float] = field(default_factory=dict)

    @property
    def disturbance(self) -> str | None:
        """Return what disturbed the measurement; None for a quiet machine."""
        return find_disturbance(self.load, self.reference_ms)


def measure_times(
    contestants: Sequence[Contestant],
    images: ImageStream,
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    device: str,
    load_before: float,
    make_kernel: Callable[[str], ReferenceKernel] = ReferenceKernel,
) -> Measurement:
    """Time all contestants in turn on the same fresh batches; the first round warms up and does not count.

    Args:
        contestants: their names differ.
        images: where the batches come from.
        batch_sizes: images in a batch; every round has one batch of each size.
        rounds: number of rounds that count.
        device: of all models.
        load_before: how many CPUs other processes used just before.
        make_kernel: makes the reference kernel.
    """
    result = Measurement({c.name: {size: [] for size in batch_sizes} for c in contestants})
    timers = {c.name: PartTimer(c.modules(), device) for c in contestants}
    kernel = make_kernel(device)
    before = CpuUse.now()
    total = (rounds + 1) * sum(batch_sizes) * len(contestants)
    with tqdm(total=total, unit="image", desc="timing", dynamic_ncols=True) as progress:
        for turn in range(rounds + 1):
            reference = kernel.milliseconds()
            if turn:
                result.reference_ms.append(reference)
            for size in batch_sizes:
                batch = images.batch(size)
                if turn:
                    _note_sizes(result, batch)
                for contestant in rotated(contestants, turn):
                    progress.set_postfix_str(f"{contestant.name}, batch {size}", refresh=False)
                    prepared = contestant.prepare(batch)
                    times = timers[contestant.name](lambda c=contestant, b=prepared: c.detect(b))
                    if turn:
                        result.times[contestant.name][size].append(times)
                    progress.update(size)
    result.reference_ms.append(kernel.milliseconds())
    result.load = {"before": load_before, "during": CpuUse.now().others_since(before)}
    return result


def _note_sizes(result: Measurement, batch: Batch) -> None:
    sizes = [tuple(image["image"].shape[-2:]) for image in batch]
    area = max(h for h, _ in sizes) * max(w for _, w in sizes) * len(sizes)
    result.sizes += sizes
    result.padding.append(1 - sum(h * w for h, w in sizes) / area)


def measure_memory(
    contestants: Sequence[Contestant], images: ImageStream, batch_sizes: Sequence[int], device: str
) -> dict[str, dict[int, float]]:
    """Return the peak extra memory of a call in MiB by contestant and batch size; {} where it cannot be measured."""
    if not memory.can_measure(device):
        return {}
    found: dict[str, dict[int, float]] = {contestant.name: {} for contestant in contestants}
    for size in batch_sizes:
        batch = images.batch(size)
        for contestant in contestants:
            prepared = contestant.prepare(batch)
            contestant.detect(prepared)  # maps what only a first call of this size maps
            peak = memory.peak_mib(lambda c=contestant, b=prepared: c.detect(b), device, calls=3)
            found[contestant.name][size] = round(peak, 1)
    return found


def measure_ap(contestants: Sequence[Contestant], run: Any) -> dict[str, dict[str, float]]:
    """Evaluate the very models that were timed on the config's evaluation data.

    Args:
        contestants: those that are not trained are left out.
        run: a `sparse_detr.config.run.Run`.

    Returns:
        contestant -> the scores of boxes, such as `AP`.
    """
    from sparse_detr.engine.evaluate import WithBudget, box_scores

    found = {}
    for contestant in contestants:
        if contestant.is_trained:
            model = contestant.model if contestant.budget is None else WithBudget(contestant.model, contestant.budget)
            found[contestant.name] = box_scores(run, model)
    return found


def make_record(
    contestants: Sequence[Contestant],
    measured: Measurement,
    *,
    config: str,
    weights: str | None,
    device: str,
    rounds: int,
    batch_sizes: Sequence[int],
    images: ImageStream,
    gigaflops: dict[str, dict[str, float] | None],
    peaks: dict[str, dict[int, float]],
) -> Record:
    """Return everything that was measured, with what a reader needs to judge or repeat it, ready for JSON.

    The `scores` of an evaluation come later.
    """
    return {
        "format": FORMAT,
        "disturbance": measured.disturbance,
        "config": config,
        "weights": weights,
        "protocol": {
            "device": device,
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "batch_sizes": list(batch_sizes),
            "different_images": images.num_files,
            "sizes": [list(size) for size in dict.fromkeys(measured.sizes)],
            "timed_images": len(measured.sizes),
            "padding_share": round(sum(measured.padding) / len(measured.padding), 4) if measured.padding else 0.0,
        },
        "machine": machine_facts(device),
        "load": {when: round(used, 3) for when, used in measured.load.items()},
        "reference_ms": [round(ms, 4) for ms in measured.reference_ms],
        "contestants": [
            {
                "name": contestant.name,
                "note": contestant.note,
                "parameters": contestant.parameters,
                "gigaflops": gigaflops.get(contestant.name),
                "peak_mib": {str(size): peak for size, peak in peaks.get(contestant.name, {}).items()},
                "scores": None,
                "milliseconds": {
                    str(size): [{part: round(ms, 4) for part, ms in times.items()} for times in turns]
                    for size, turns in measured.times[contestant.name].items()
                },
            }
            for contestant in contestants
        ],
    }


def machine_facts(device: str) -> Record:
    """Return the facts of machine and software."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_model(),
        "cpus": num_cpus(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "attention_op": native.cpu_isa() or "PyTorch alone",
        "gpu": gpu() if torch.device(device).type == "cuda" else None,
        "allocator": allocator_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sparse_detr": version("sparse_detr"),
    }
