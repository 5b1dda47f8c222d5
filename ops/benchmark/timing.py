"""Times of variants that run in turn on fresh inputs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmark.cases import Case, Inputs, compulsory_bytes, eager_samples, make_inputs
from benchmark.peers.composite import composite
from benchmark.variants import FORMS, Variant

L2_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Task:
    """A comparison: a case and how the op is called on it."""

    case: Case
    form: str
    backward: bool
    device: str
    dtype: str
    threads: int

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def direction(self) -> str:
        return "forward + backward" if self.backward else "forward"

    @property
    def clock(self) -> str:
        if self.device == "cuda":
            return "CUDA events"
        return "thread CPU time" if self.threads == 1 else "wall time"

    @property
    def group(self) -> str:
        """Tasks that share a table."""
        how = "GPU" if self.device == "cuda" else "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{FORMS[self.form]}, {self.dtype}, {how}, {self.clock}"

    def describe(self) -> dict[str, Any]:
        """Return the task for JSON."""
        result = asdict(self)
        result.update(case=self.case.name, batch=self.case.batch, tokens=self.case.num_tokens)
        result.update(queries=self.case.num_queries, clock=self.clock, group=self.group, direction=self.direction)
        return result


def call(variant: Variant, task: Task, inputs: Inputs) -> Callable[[], Any]:
    """Return the call that is timed; everything that is not its work is done before."""
    inputs = variant.prepare(inputs)
    if task.form == "splat":
        return lambda: forward(variant, inputs.levels, inputs.locations, inputs.weights)
    value, *samples = (leaf(tensor, task) for tensor in leaves_of(task.form, inputs))
    middle = [inputs.levels] + [inputs.reference_points] * (task.form == "fused")
    if not task.backward:
        return lambda: forward(variant, value, *middle, *samples)
    return lambda: forward_backward(variant, value, middle, samples, inputs.grad_output)


def leaves_of(form: str, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return what has a gradient. Reference points have none in any of our models."""
    if form == "fused":
        return inputs.value, inputs.offsets, inputs.logits
    return inputs.value, inputs.locations, inputs.weights


def leaf(tensor: Tensor, task: Task) -> Tensor:
    return tensor.detach().requires_grad_(task.backward)


def forward(variant: Variant, *arguments) -> Tensor:
    with torch.no_grad():
        return variant.run(*arguments)


def forward_backward(
    variant: Variant, value: Tensor, middle: list, samples: list[Tensor], grad_output: Tensor
) -> tuple[Tensor, ...]:
    output = variant.run(value, *middle, *samples)
    return output, *torch.autograd.grad(output, [value, *samples], grad_output)


def timer(task: Task) -> Callable[[Callable[[], Any]], float]:
    """Return the clock for a task: a function that runs something and returns its milliseconds."""
    if task.device == "cuda":
        return CudaTimer()
    return thread_time if task.threads == 1 else wall_time


def thread_time(run: Callable[[], Any]) -> float:
    start = time.thread_time_ns()
    result = run()
    stop = time.thread_time_ns()
    del result
    return (stop - start) / 1e6


def wall_time(run: Callable[[], Any]) -> float:
    start = time.perf_counter_ns()
    result = run()
    stop = time.perf_counter_ns()
    del result
    return (stop - start) / 1e6


class CudaTimer:
    """A clock of events around a call that finds nothing in the L2 cache. Launches overlap with emptying it."""

    def __init__(self) -> None:
        self.flush = torch.empty(L2_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def __call__(self, run: Callable[[], Any]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        start.record()
        result = run()
        stop.record()
        stop.synchronize()
        del result
        return start.elapsed_time(stop)


def errors(variant: Variant, task: Task) -> list[float]:
    """Return the largest deviations from the formula in float64 on a tiny input, relative to the largest number.

    Splats are compared with nothing.
    """
    if task.form == "splat" or variant.one_spot:
        return []
    inputs = make_inputs(task.case.tiny(), seed=0, device=task.device, dtype=task.torch_dtype)
    results = call(variant, task, inputs)()
    expected = call(EXACT[task.form], task, exact(variant.prepare(inputs)))()
    pairs = zip(results, expected, strict=True) if task.backward else [(results, expected)]
    return [relative_error(result, truth) for result, truth in pairs]


def exact(inputs: Inputs) -> Inputs:
    """Return the same numbers in float64."""
    fields = {name: getattr(inputs, name) for name in inputs.__dataclass_fields__}
    return Inputs(**{name: x.double() if isinstance(x, Tensor) else x for name, x in fields.items()})


def relative_error(result: Tensor, truth: Tensor) -> float:
    return float((result.detach().double() - truth.detach()).abs().max() / truth.detach().abs().max())


def in_double(value: Tensor, levels, locations: Tensor, weights: Tensor) -> Tensor:
    return composite(value, levels, locations, weights, contiguous_grid=True)


def in_double_fused(value: Tensor, levels, reference_points: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    return in_double(value, levels, *eager_samples(levels.shapes, reference_points, offsets, logits))


EXACT = {
    "plain": Variant("float64", "pytorch", in_double),
    "fused": Variant("float64", "pytorch", in_double_fused),
}


def time_variants(task: Task, variants: list[Variant], repetitions: int, progress: Progress) -> dict[str, Any]:
    """Return the milliseconds of every variant in every repetition. The first one warms up and is dropped."""
    torch.set_num_threads(task.threads)
    milliseconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    clock = timer(task)
    for repetition in range(repetitions + 1):
        progress.step(task, repetition, repetitions)
        inputs = make_inputs(task.case, seed=repetition, device=task.device, dtype=task.torch_dtype)
        for variant in rotated(variants, repetition):
            duration = clock(call(variant, task, inputs))
            if repetition:
                milliseconds[variant.name].append(duration)
    moved = compulsory_bytes(inputs, form=task.form, backward=task.backward)
    return {**task.describe(), "compulsory_bytes": moved, "milliseconds": milliseconds}


def rotated(variants: list[Variant], by: int) -> list[Variant]:
    """Rotate the order, so that no variant always runs after the same other one."""
    by %= len(variants)
    return variants[by:] + variants[:by]


class Progress:
    """A line that says what runs and how long it will take."""

    def __init__(self, tasks: list[Task], repetitions: Callable[[Task], int]) -> None:
        self.total = sum(self.cost(task) * (repetitions(task) + 1) for task in tasks)
        self.done = 0.0
        self.start = time.monotonic()

    @staticmethod
    def cost(task: Task) -> float:
        """Return the cost of a task in arbitrary units."""
        return (task.case.batch * task.case.num_queries + 500) * (4 if task.backward else 1) / task.threads

    def step(self, task: Task, repetition: int, repetitions: int) -> None:
        left = "?"
        if self.done:
            seconds = (time.monotonic() - self.start) * (self.total / self.done - 1)
            left = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        self.done += self.cost(task)
        text = f"{task.group}: {task.case.name}, {task.direction}, {repetition}/{repetitions}, about {left} left"
        if sys.stderr.isatty():
            print(f"\r{text:<110}", end="", file=sys.stderr, flush=True)
        elif repetition == 0:
            print(text, file=sys.stderr, flush=True)
