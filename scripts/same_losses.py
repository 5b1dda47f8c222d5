"""Check that a change alters no number: train shortly before and after it, and compare every loss and weight.

    python scripts/same_losses.py main                          this working tree against the branch main
    python scripts/same_losses.py v0.1 --all                    every quick config that BASE has too
    python scripts/same_losses.py main --config-file configs/quick/dino_mnv2.py --iterations 100
    python scripts/same_losses.py main --all --renamed new_mnv2=old_mnv2      a config with another name in BASE

BASE is unpacked into a temporary folder. Both sides train on the CPU with one thread, the same seed, the same data and
the same native library; if BASE has other native sources, its own library is built. All numbers of metrics.json except
times and memory, and the weights of model_final.pth, are compared bit for bit. The ratio of the step times is only a
hint, since the two trainings run one after the other. Exit status: 0 if all is identical, 1 if not, 2 after an error.
"""

import argparse
import io
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sparse_detr.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NATIVE = Path("sparse_detr/ops/_native")
NATIVE_SOURCES = ("ops/csrc", "ops/build.py")
NOT_COMPARED = ("time", "data_time", "rank_data_time", "eta_seconds", "max_mem", "max_allocated_mem")
MEASURED = "tokens/"  # numbers of these names are measured, not trained; older versions do not log them
LAST_LINES = 15  # of a failed command's output

Metrics = dict[int, dict[str, float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare every config that the command line names; return the exit status."""
    args = parse(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="same_losses_") as scratch:
            base = unpack(args.base, Path(scratch, "base"))
            environment = common_environment(base)
            same = [compare_config(config, base, Path(scratch), environment, args) for config in configs(args, base)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if all(same) else 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", metavar="BASE", help="commit, branch or tag before the change")
    parser.add_argument("--config-file", default="configs/quick/sparse_detr_mnv2.py", help="lazy config (%(default)s)")
    parser.add_argument("--all", action="store_true", help="all of configs/quick/*_mnv2.py in place of one config")
    parser.add_argument(
        "--renamed", action="append", default=[], metavar="NEW=OLD", help="stem of a config file now, and in BASE"
    )
    parser.add_argument("--iterations", type=int, default=50, help="iterations of each training (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def configs(args: argparse.Namespace, base: Path) -> list[str]:
    """Return the paths of the configs, relative to the repository's root; with `--all`, those that BASE has too.

    Raises:
        UserError: BASE has none of them, or a `--renamed` is not NEW=OLD.
    """
    if not args.all:
        return [args.config_file]
    paths = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/quick/*_mnv2.py"))
    found = [path for path in paths if (base / old_name(path, args.renamed)).is_file()]
    for path in (path for path in paths if path not in found):
        stem = Path(path).stem
        print(f"==> {stem}: NOT COMPARED, BASE has no such config; if it had another name: --renamed {stem}=OLD")
    if not found:
        raise UserError("BASE has none of the quick configs, so there is nothing to compare")
    return found


def old_name(config: str, renamed: Sequence[str]) -> str:
    """Return the path that a config has in BASE, if it is there.

    Raises:
        UserError: a `renamed` is not NEW=OLD.
    """
    if wrong := [pair for pair in renamed if pair.count("=") != 1]:
        raise UserError(f"--renamed takes NEW=OLD, not {wrong[0]!r}")
    path = Path(config)
    return path.with_stem(dict(pair.split("=") for pair in renamed).get(path.stem, path.stem)).as_posix()


def name_in_base(config: str, base: Path, renamed: Sequence[str]) -> str:
    """Return the path of a config in BASE.

    Raises:
        UserError: BASE has no such file, or a `renamed` is not NEW=OLD.
    """
    old = Path(old_name(config, renamed))
    if not (base / old).is_file():
        known = ", ".join(sorted(file.stem for file in (base / old.parent).glob("*.py")))
        raise UserError(f"BASE has no {old}; give --renamed {Path(config).stem}=OLD with OLD one of: {known}")
    return old.as_posix()


def unpack(base: str, folder: Path) -> Path:
    """Write the files of a commit into a folder."""
    archive = subprocess.run(["git", "archive", base], cwd=ROOT, capture_output=True)
    if archive.returncode:
        raise UserError(f"git cannot read {base!r}; name a commit, branch or tag ({archive.stderr.decode().strip()})")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return folder


def common_environment(base: Path) -> dict[str, str]:
    """Return the environment variables of both trainings; build BASE's native library if its sources differ."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    sample = os.environ.get("SPARSE_DETR_SAMPLE") or "datasets/sample"
    fixed = {"SPARSE_DETR_SAMPLE": str((ROOT / sample).resolve()), "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
    if all(same_files(ROOT / source, base / source) for source in NATIVE_SOURCES):
        fixed["SPARSE_DETR_NATIVE_DIR"] = os.environ.get("SPARSE_DETR_NATIVE_DIR") or str(ROOT / NATIVE)
    else:
        print("==> BASE has other native sources: building its library", flush=True)
        run_command([sys.executable, "ops/build.py"], base, os.environ, base / "build.txt")
    return {**os.environ, **threads, **fixed}


def same_files(one: Path, other: Path) -> bool:
    """Return whether two files, or all files of two folders, are equal."""
    if not one.is_dir():
        return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
    names = {path.relative_to(folder) for folder in (one, other) for path in folder.rglob("*") if path.is_file()}
    return all(same_files(one / name, other / name) for name in names)


def run_command(command: list[str], folder: Path, environment: Mapping[str, str], log: Path, watch=None) -> None:
    """Run a command in a folder and with the modules of that folder; its output goes to a file.

    Args:
        watch: called every second while it runs.

    Raises:
        UserError: the command failed; shows its last lines.
    """
    path = os.pathsep.join(filter(None, [str(folder), environment.get("PYTHONPATH")]))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**environment, "PYTHONPATH": path}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                time.sleep(0.1 if watch is None else 1)
                if watch is not None:
                    watch()
        finally:
            process.kill()
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise UserError(f"`{shlex.join(command)}` failed with exit status {process.returncode} in {folder}:\n{last}")


def compare_config(
    config: str, base: Path, scratch: Path, environment: Mapping[str, str], args: argparse.Namespace
) -> bool:
    """Train one config on both sides and print the differences; return whether there are none."""
    sides = {"before": (base, name_in_base(config, base, args.renamed)), "after": (ROOT, config)}
    outputs = {side: scratch / Path(config).stem / side for side in sides}
    for side, (root, path) in sides.items():
        train_side(f"{Path(config).stem}, {side}", root, path, outputs[side], environment, args)
    before, after = (read_metrics(outputs[side] / "metrics.json") for side in sides)
    found = compare(before, after, *(read_weights(outputs[side] / "model_final.pth") for side in sides))
    print(f"    {found}", flush=True)
    return not found.differences


def train_side(
    title: str, root: Path, config: str, output: Path, environment: Mapping[str, str], args: argparse.Namespace
) -> None:
    """Train one side shortly, and count its iterations in one line of the terminal."""
    command = [sys.executable, "train_net.py", "--config-file", config, "--output-dir", str(output)]
    command += [f"train.max_iter={args.iterations}", f"train.seed={args.seed}", "train.device=cpu"]
    command += ["train.log_period=1", "train.eval_period=0", f"train.checkpointer.period={args.iterations}"]
    metrics = output / "metrics.json"

    def show() -> None:
        done = len(metrics.read_text().splitlines()) if metrics.is_file() else 0
        print(f"\r==> {title}: {done} of {args.iterations} iterations", end="", flush=True)

    start = time.monotonic()
    watch, overwrite = (show, "\r") if sys.stdout.isatty() else (None, "")
    run_command(command, root, environment, output.with_name(f"{output.name}.txt"), watch)
    print(f"{overwrite}==> {title}: {args.iterations} iterations, {time.monotonic() - start:.0f} s   ", flush=True)


def read_metrics(path: Path) -> Metrics:
    """Return iteration -> name -> number, from Detectron2's metrics.json."""
    found: Metrics = {}
    for line in map(json.loads, path.read_text().splitlines()):
        found.setdefault(int(line.pop("iteration")), {}).update(line)
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint by name."""
    return torch.load(path, map_location="cpu", weights_only=True)["model"]


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison of two trainings.

    Args:
        differences: the first different number and the first different weight, in words; empty if there are none.
        numbers: count of the compared numbers.
        iterations: count of their iterations.
        step_ratio: step time after the change, divided by the one before; NaN if none was recorded.
    """

    differences: list[str]
    numbers: int
    iterations: int
    step_ratio: float

    def __str__(self) -> str:
        verdict = "DIFFERENT: " + "; ".join(self.differences) if self.differences else "identical"
        compared = f"{self.numbers} numbers of {self.iterations} iterations and the weights"
        if math.isnan(self.step_ratio):
            return f"{verdict} ({compared}); too few iterations for a step time"
        return f"{verdict} ({compared}); a step takes {self.step_ratio:.2f} times as long as before"


def compare(
    before: Metrics, after: Metrics, weights_before: Mapping[str, Tensor], weights_after: Mapping[str, Tensor]
) -> Comparison:
    """Compare the numbers in order, then the weights.

    Raises:
        UserError: there is nothing to compare.
    """
    compared = [(step, name) for step in sorted(before) for name in before[step] if name not in NOT_COMPARED]
    if not compared or not weights_before:
        raise UserError("BASE has recorded no numbers or no weights to compare; give more --iterations")
    found = [first_difference(before, after), first_different_weight(weights_before, weights_after)]
    ratio = median_step(after) / median_step(before)
    return Comparison([text for text in found if text], len(compared), len(before), ratio)


def first_difference(before: Metrics, after: Metrics) -> str:
    """Return, in words, the first number that differs or is on one side only; "" if there is none. NaN equals NaN."""
    for step in sorted(before.keys() | after.keys()):
        old, new = before.get(step, {}), after.get(step, {})
        for name in sorted((old.keys() | new.keys()) - set(NOT_COMPARED)):
            if name.startswith(MEASURED) and (name not in old or name not in new):
                continue
            if name not in old or name not in new:
                return f"iteration {step}, {name} is only {'after' if name in new else 'before'} the change"
            if old[name] != new[name] and not (math.isnan(old[name]) and math.isnan(new[name])):
                return f"iteration {step}, {name} is {old[name]!r} before and {new[name]!r} after"
    return ""


def first_different_weight(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> str:
    """Return, in words, the first tensor that differs or is on one side only; "" if there is none."""
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            return f"the weight {name} is only {'after' if name in after else 'before'} the change"
        if not torch.equal(before[name], after[name]):
            return f"the weight {name} differs"
    return ""


def median_step(metrics: Metrics) -> float:
    """Return the median seconds of an iteration; NaN if none was recorded."""
    return statistics.median([line["time"] for line in metrics.values() if "time" in line] or [math.nan])


if __name__ == "__main__":
    sys.exit(main())
