"""Measure a step of training by part, before and after a change.

    python scripts/measure_training.py main                         this working tree against the branch main
    python scripts/measure_training.py main --cases quick --steps 5
    python scripts/measure_training.py main --readme docs/training_speed.md    write the tables between its markers
    python scripts/measure_training.py --busy                       two threads beside a busy program
    python scripts/measure_training.py --profile                    what takes the time of a step, by kind of operation

Both sides train at the same time in processes of their own, which take turns step by step: same data, same weights, one
thread, thread CPU time. The first steps are not counted. Every number is a median with its quartiles; a ratio is the
median of the ratios of two neighbouring steps. The losses of both sides are compared too.

`--busy` measures the wall time of a step with two threads, while another program keeps one core busy, for both ways to
wait: as GNU's OpenMP does, and as this package sets it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from same_losses import ROOT, common_environment, unpack

from sparse_detr.analysis.tables import fill_readme, markdown_table
from sparse_detr.errors import UserError

# Name: config, number of random images (0 for those of the config), height, width.
CASES: dict[str, tuple[str, int, int, int]] = {
    "quick": ("configs/quick/sparse_detr_mnv2.py", 0, 0, 0),
    "quick_dino": ("configs/quick/dino_mnv2.py", 0, 0, 0),
    "r50": ("projects/SparseDETR/configs/sparse_detr_r50_rho30.py", 2, 480, 640),
    "focus": ("projects/FocusDETR/configs/focus_detr_r50_12ep.py", 2, 480, 640),
}
TITLES = {
    "quick": "Quick config (MobileNetV2, 384 pixels, 4 images)",
    "quick_dino": "Quick DINO (MobileNetV2, 384 pixels, 4 images)",
    "r50": "Sparse DETR, ResNet-50, rho 30 %, 480x640, 2 images",
    "focus": "Focus-DETR, ResNet-50, 480x640, 2 images",
}
PARTS = ("data", "backbone", "transformer", "losses", "backward", "optimizer", "rest")
# Kind of operation: words in the names of PyTorch's operations.
KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "deformable attention": ("deformable_attention", "splat_attention"),
    "copies, gathers, sums in place": ("copy_", "fill_", "cat", "gather", "scatter", "index", "add_"),
    "random numbers of dropout": ("bernoulli",),
}
GNU_SPIN_ROUNDS = 300_000
BOXES = 7  # of a random image, the mean of COCO


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for; return the exit status."""
    args = parse(arguments)
    if args.worker:
        return work(args)
    try:
        tables = measure_busy(args) if args.busy else profiles(args) if args.profile else measure_pairs(args)
        for name, text in tables.items():
            print(f"\n{text}\n", flush=True)
            if args.readme:
                fill_readme(args.readme, name, text)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", metavar="BASE", help="commit, branch or tag before the change")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["quick", "r50"])
    parser.add_argument("--steps", type=int, default=10, help="measured steps of each side (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them (%(default)s)")
    parser.add_argument("--busy", action="store_true", help="two ways to wait, beside a busy program")
    parser.add_argument("--profile", action="store_true", help="share of every kind of operation in a step")
    parser.add_argument("--readme", metavar="FILE", help="write the tables between the markers of this file")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to this file")
    parser.add_argument("--worker", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if not (args.base or args.busy or args.profile or args.worker):
        parser.error("name a commit to compare with, such as main")
    return args


# --- the process that takes the steps -------------------------------------------------------------------------------


def work(args: argparse.Namespace) -> int:
    """Take one step for every line that is read, and write its numbers as a line of JSON."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    trainer, clock = build(args.worker)
    from detectron2.utils.events import EventStorage

    with EventStorage() as storage:
        trainer.storage = storage
        for _ in sys.stdin:
            answers.write(json.dumps(clock.step(trainer)) + "\n")
            answers.flush()
    return 0


def build(case: str) -> tuple[Any, "Clock"]:
    """Return the training loop of a case and the clock of its parts."""
    import torch

    from sparse_detr.config import load_config
    from sparse_detr.config.run import make_run
    from sparse_detr.engine import training
    from sparse_detr.engine.weights import load_weights

    config, images, height, width = CASES[case]
    run = make_run(load_config(config, ["train.device=cpu"]))
    torch.manual_seed(0)
    model = run.build_model().train()
    if hasattr(training, "prepare_model"):  # else a BASE from before this script
        training.set_up_cpu("cpu")
        training.prepare_model(model, run.settings)
    if images:
        calm(model)
        object.__setattr__(run, "build_train_loader", lambda: random_batches(images, height, width))
    else:
        load_weights(model, run.settings.init_checkpoint, skip_other_classes=True)
    optimizer = run.build_optimizer(model)
    make = getattr(training, "build_trainer", None) or training._build_trainer
    return (trainer := make(run, model, optimizer)), Clock(trainer)


def calm(model: Any) -> None:
    """Give the frozen norms of a backbone without trained weights scales that keep its maps finite."""
    for name, buffer in model.backbone.named_buffers():
        if name.endswith("norm.weight"):
            buffer.fill_(0.4)


def random_batches(images: int, height: int, width: int) -> Iterator[list[dict[str, Any]]]:
    """Yield batches of noise with random boxes of the classes of COCO, always the same."""
    import torch
    from detectron2.structures import Boxes, Instances

    generator = torch.Generator().manual_seed(0)
    while True:
        batch = []
        for _ in range(images):
            instances = Instances((height, width))
            corners = torch.rand(BOXES, 2, 2, generator=generator).sort(1).values * torch.tensor([width, height])
            instances.gt_boxes = Boxes(corners.flatten(1))
            instances.gt_classes = torch.randint(80, (BOXES,), generator=generator)
            image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
            batch.append({"image": image, "instances": instances, "height": height, "width": width})
        yield batch


class Clock:
    """Thread CPU time of the parts of a step, taken by hooks."""

    def __init__(self, trainer: Any) -> None:
        self.seconds = dict.fromkeys((*PARTS, "forward"), 0.0)
        self._started: dict[str, float] = {}
        model = trainer.model
        for part, module in (("backbone", model.backbone), ("losses", model.criterion), ("forward", model)):
            module.register_forward_pre_hook(lambda *_, part=part: self.start(part))
            module.register_forward_hook(lambda *_, part=part: self.stop(part))
        trainer.optimizer.register_step_pre_hook(lambda *_: self.start("optimizer"))
        trainer.optimizer.register_step_post_hook(lambda *_: self.stop("optimizer"))
        trainer._data_loader_iter_obj = self._timed(iter(trainer.data_loader))
        backward = trainer._backward
        trainer._backward = lambda batch: self._run("backward", backward, batch)

    def start(self, part: str) -> None:
        self._started[part] = time.thread_time()

    def stop(self, part: str) -> None:
        self.seconds[part] += time.thread_time() - self._started.pop(part)

    def _run(self, part: str, function: Any, *args: Any) -> Any:
        self.start(part)
        try:
            return function(*args)
        finally:
            self.stop(part)

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            yield self._run("data", next, batches)

    def step(self, trainer: Any) -> dict[str, float]:
        """Take a step; return the milliseconds of its parts, of the whole and of the wall clock, and the loss."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        start, wall = time.thread_time(), time.perf_counter()
        trainer.run_step()
        whole, wall = time.thread_time() - start, time.perf_counter() - wall
        parts = dict(self.seconds)
        forward = parts.pop("forward")
        parts["backward"] -= forward
        parts["transformer"] = forward - parts["backbone"] - parts["losses"]
        parts["rest"] = whole - sum(parts.values())
        milliseconds = {name: 1000 * value for name, value in (*parts.items(), ("whole", whole), ("wall", wall))}
        loss, _ = trainer.storage.latest()["total_loss"]
        return {**milliseconds, "loss": loss}


# --- the process that compares --------------------------------------------------------------------------------------


@contextmanager
def worker(case: str, folder: Path, environment: dict[str, str]) -> Iterator[Any]:
    """Start a process that trains with the modules of a folder; yield a function that takes one step."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", case]
    # The scripts of this working tree, with the package of the folder.
    environment = {**environment, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent)])}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )

        def step() -> dict[str, float]:
            assert process.stdin
            assert process.stdout
            process.stdin.write("step\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                log.seek(0)
                raise UserError(f"the training in {folder} ended:\n{''.join(log.readlines()[-15:])}")
            return json.loads(line)

        try:
            yield step
        finally:
            assert process.stdin
            process.stdin.close()
            process.wait()


def measure_pairs(args: argparse.Namespace) -> dict[str, str]:
    """Return for every case its table of the parts of a step, before and after."""
    tables, numbers = {}, {}
    with tempfile.TemporaryDirectory(prefix="measure_training_") as scratch:
        base = unpack(args.base, Path(scratch))
        environment = common_environment(base)
        for case in args.cases:
            with worker(case, base, environment) as before, worker(case, ROOT, environment) as after:
                pairs = [(before(), after()) for _ in progress(case, args.warm_up + args.steps)]
            numbers[case] = pairs
            tables[case] = f"{TITLES[case]}, {describe(args.base)}:\n\n{table(pairs, args.warm_up)}"
            if args.json:
                Path(args.json).write_text(json.dumps(numbers, indent=1))
    return tables


def progress(case: str, steps: int) -> Iterator[int]:
    for step in range(steps):
        print(f"{case}: step {step + 1} of {steps}", file=sys.stderr, flush=True)
        yield step


def describe(base: str) -> str:
    """Return the commits that were compared, and how busy the machine was."""
    commits = [
        subprocess.run(["git", "rev-parse", "--short", name], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        for name in (base, "HEAD")
    ]
    return f"{commits[0]} before, {commits[1]} after, load of the machine {os.getloadavg()[0]:.1f}"


def table(pairs: Sequence[tuple[dict[str, float], dict[str, float]]], warm_up: int) -> str:
    """Return a Markdown table of the measured steps; the losses of all steps are compared below it."""
    measured = pairs[warm_up:]
    rows = []
    for part in (*PARTS, "whole"):
        before, after = ([side[part] for side in sides] for sides in zip(*measured, strict=True))
        ratios = [a / b if b > 0 else float("nan") for a, b in zip(before, after, strict=True)]
        rows.append([part, spread(before, 0), spread(after, 0), spread(ratios, 2)])
    text = markdown_table(["CPU ms of a step", "before", "after", "before / after"], rows)
    return f"{text}\n\nMedian (quartiles) of {len(measured)} steps. {compare_losses(pairs)}"


def compare_losses(pairs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> str:
    """Return how much the losses of both sides differ, relative to the loss."""
    differences = [abs(before["loss"] - after["loss"]) / abs(before["loss"]) for before, after in pairs]
    if not any(differences):
        return f"All {len(pairs)} losses are identical."
    return (
        f"The losses differ by {differences[0]:.0e} in the first step and by at most {max(differences):.0e} in "
        f"{len(pairs)} steps, relative to the loss."
    )


def spread(values: Sequence[float], digits: int) -> str:
    """Return `median (first to third quartile)`."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


# --- what a step consists of ----------------------------------------------------------------------------------------


def profiles(args: argparse.Namespace) -> dict[str, str]:
    """Return a table of the shares of all kinds of operations in one step, with one thread."""
    import torch

    torch.set_num_threads(1)
    shares = [shares_of_kinds(case, args.warm_up) for case in args.cases]
    rows = [[kind, *(f"{share[kind]:.0%}" for share in shares)] for kind in (*KINDS, "all else")]
    products = ("convolutions", "matrix products")
    bounds = [1 / sum(share[kind] for kind in products) for share in shares]
    rows.append(["faster, if nothing else took time", *(f"{bound:.2f}x" for bound in bounds)])
    header = ["share of a step", *(TITLES[case] for case in args.cases)]
    return {"profile": f"{markdown_table(header, rows)}\n\nBy PyTorch's profiler, one step."}


def shares_of_kinds(case: str, warm_up: int) -> dict[str, float]:
    """Return the share of every kind of operation in one step."""
    from detectron2.utils.events import EventStorage
    from torch.profiler import ProfilerActivity, profile

    trainer, clock = build(case)
    with EventStorage() as storage:
        trainer.storage = storage
        for _ in progress(f"{case}, warm-up", warm_up):
            clock.step(trainer)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            clock.step(trainer)
    times = dict.fromkeys((*KINDS, "all else"), 0.0)
    for event in profiler.key_averages():
        times[kind_of_operation(event.key)] += event.self_cpu_time_total
    return {kind: microseconds / sum(times.values()) for kind, microseconds in times.items()}


def kind_of_operation(name: str) -> str:
    """Return the kind of an operation of PyTorch, by its name."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "all else")


# --- two threads beside a busy program ------------------------------------------------------------------------------


def measure_busy(args: argparse.Namespace) -> dict[str, str]:
    """Return the table of the wall times of a step with two threads, alone and beside a busy program."""
    from sparse_detr._threads import SPIN_ROUNDS  # not at the top: a BASE may lack it

    case = args.cases[0]
    ways = {"GNU's default": GNU_SPIN_ROUNDS, "this package": SPIN_ROUNDS}
    sample = str((ROOT / (os.environ.get("SPARSE_DETR_SAMPLE") or "datasets/sample")).resolve())
    common = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "SPARSE_DETR_SAMPLE": sample}
    seconds: dict[str, dict[bool, list[float]]] = {name: {False: [], True: []} for name in ways}
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(case, ROOT, {**common, "GOMP_SPINCOUNT": str(rounds)}))
            for name, rounds in ways.items()
        }
        for busy in (False, True):
            with busy_program() if busy else ExitStack():
                for number in progress(f"{case}, {'beside a busy program' if busy else 'alone'}", args.steps + 1):
                    for name, step in workers.items():
                        wall = step()["wall"]
                        if number:
                            seconds[name][busy].append(wall)
    rows = [
        [f"{name} ({ways[name]} rounds)", spread(both[False], 0), spread(both[True], 0)]
        for name, both in seconds.items()
    ]
    header = ["ms of a step, two threads", "alone", "beside a busy program"]
    return {"busy": f"{TITLES[case]}:\n\n{markdown_table(header, rows)}"}


@contextmanager
def busy_program() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
