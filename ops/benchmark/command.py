"""Measure every backend of deformable attention against PyTorch's composite forms and the installable peers.

    python ops/benchmark --output ops/results/cpu.json    # CPU: one thread, then all; minutes
    python ops/benchmark --suite heads --forms plain --output ops/results/cpu_heads.json    # M 4 to 16, D 8 to 64
    python ops/benchmark --device cuda --dtypes float32 bfloat16
    python ops/benchmark --quick                          # a tiny pyramid, seconds: only to see that it works
    python ops/benchmark --from-json ops/results/cpu.json --readme ops/README.md    # only tables and plots

Variants run interleaved on fresh random inputs; times are medians, ratios medians of the repetitions' ratios with their
quartiles. One thread is timed by its CPU time, several by wall time, the GPU by events after emptying its L2 cache.
Peers are optional: what is missing is named with the command that installs it. Nobody else should use the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmark import machine, peak_memory, publish
from benchmark.cases import CASES, SUITES, Case
from benchmark.catalog import variants_of
from benchmark.timing import Progress, Task, errors, time_variants
from benchmark.variants import FORMS, Variant
from sparse_detr.analysis.tables import fill_readme

Record = dict[str, Any]


def main() -> int:
    """Measure or read, then write JSON, tables and plots."""
    args = parse(sys.argv[1:])
    if args.peak_memory_of:
        print(peak_memory.answer(json.loads(args.peak_memory_of)))
        return 0
    if args.from_json:
        results = json.loads(args.from_json.read_text())
        stem = args.from_json.with_suffix("")
    else:
        restart_with_clean_allocator(args)
        results = measure_all(args)
        write(results, args.output)
        stem = args.output.with_suffix("")
    write_tables(results, stem, args.readme)
    for name, reason in results["failed"].items():
        print(f"FAILED: {name}: {reason}", file=sys.stderr)
    return 1 if results["failed"] else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/ops_benchmark.json"), help="plots go beside it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32"], choices=("float32", "float64", "bfloat16", "float16")
    )
    parser.add_argument("--threads", nargs="+", type=int, help="default: 1, then all cores; meaningless on cuda")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--suite", choices=SUITES, default="usual", help="heads: other numbers and sizes of heads")
    parser.add_argument("--cases", nargs="+", metavar="PART", help="only cases whose name contains one of these")
    parser.add_argument("--variants", nargs="+", metavar="PART", help="only variants whose name contains one of these")
    parser.add_argument("--repetitions", type=int, default=9, help="three times as many in the decoder's case")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory, a process for each number")
    parser.add_argument("--allocator", choices=("clean", "default"), default="clean", help=CLEAN_HELP)
    parser.add_argument("--quick", action="store_true", help="a tiny pyramid and two repetitions")
    parser.add_argument("--from-json", type=Path, help="measure nothing")
    parser.add_argument("--readme", type=Path, help="fill its marks `table benchmark cpu` (or cuda, heads cpu)")
    parser.add_argument("--peak-memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available() and not args.from_json:
        parser.error("this machine has no GPU that torch can use")
    args.repetitions = 2 if args.quick else args.repetitions
    args.threads = [1] if args.device == "cuda" else args.threads or sorted({1, torch.get_num_threads()})
    return args


CLEAN_HELP = "clean keeps freed memory mapped (glibc), which flatters the PyTorch forms; default changes nothing"


def restart_with_clean_allocator(args: argparse.Namespace) -> None:
    """Start this process anew with other settings, which the C library reads at a process's start."""
    if args.allocator == "clean" and args.device == "cpu" and not machine.allocator():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **machine.CLEAN_ALLOCATOR})


def measure_all(args: argparse.Namespace) -> Record:
    """Measure everything that was asked for."""
    results: Record = {
        "format": 1,
        "quick": args.quick,
        "suite": args.suite,
        "repetitions": args.repetitions,
        "allocator": machine.allocator_name(),
        "machine": machine.machine_record(args.device),
        "bandwidth": {str(threads): measure_bandwidth(args, threads) for threads in args.threads},
        "tasks": [],
        "memory": [],
        "missing": {},
        "failed": {},
    }
    tasks = list_tasks(args)
    progress = Progress(tasks, lambda task: repetitions(args, task))
    for task in tasks:
        variants = usable_variants(args, task, results)
        if variants:
            record = time_variants(task, variants, repetitions(args, task), progress)
            results["tasks"].append({**record, "kinds": {variant.name: variant.kind for variant in variants}})
    if not args.no_memory and peak_memory.can_measure(args.device):
        results["memory"] = measure_memory(args, results)
    return results


def measure_bandwidth(args: argparse.Namespace, threads: int) -> float:
    torch.set_num_threads(threads)
    return machine.copy_bandwidth(args.device, megabytes=16 if args.quick else 512)


def list_tasks(args: argparse.Namespace) -> list[Task]:
    """List the tasks in the order of the report."""
    return [
        Task(case, form, backward, args.device, dtype, threads)
        for threads in args.threads
        for dtype in args.dtypes
        for form in args.forms
        for case in chosen_cases(args)
        for backward in ((False,) if form == "splat" else (False, True))
        if form != "splat" or (case.boxes and dtype == args.dtypes[0])  # the map is made of the decoder's samples
    ]


def chosen_cases(args: argparse.Namespace) -> list[Case]:
    cases = [case for case in SUITES[args.suite] if not args.cases or any(part in case.name for part in args.cases)]
    return [case.tiny() for case in cases] if args.quick else cases


def repetitions(args: argparse.Namespace, task: Task) -> int:
    return args.repetitions * (3 if task.case.boxes and not args.quick else 1)


def usable_variants(args: argparse.Namespace, task: Task, results: Record) -> list[Variant]:
    """Return the variants that run here; note the reasons of the others and every variant's error."""
    found, missing = variants_of(task.form, task.device)
    results["missing"].update(missing)
    kept = []
    for variant in found:
        yard = publish.yardstick({"form": task.form})
        wanted = not args.variants or variant.name == yard or any(part in variant.name for part in args.variants)
        if wanted and not (variant.one_spot and task.backward) and can_run(variant, task, results):
            kept.append(variant)
    return kept


def can_run(variant: Variant, task: Task, results: Record) -> bool:
    """Try a variant on a tiny input. A peer that fails is left out; ours makes the run fail in the end."""
    key = f"{variant.name}, {task.form}, {task.dtype}, {task.direction}"
    try:
        deviation = errors(variant, task)
    except (RuntimeError, ValueError, TypeError, ImportError, NotImplementedError) as error:
        results["failed" if variant.kind == "ours" else "missing"][key] = f"{type(error).__name__}: {error}"
        return False
    results.setdefault("largest_relative_errors", {})[key] = deviation
    return True


def measure_memory(args: argparse.Namespace, results: Record) -> list[Record]:
    """Measure the plain and the fused form with one thread and every token a query."""
    records = []
    for task in list_tasks(args):
        if task.case.name == CASES[0].name and task.threads == args.threads[0] and task.form != "splat":
            for variant in usable_variants(args, task, results):
                if variant.kind != "floor":
                    print(f"Peak memory: {variant.name}, {task.direction}", file=sys.stderr, flush=True)
                    records.append({**task.describe(), "variant": variant.name, "mib": peak(variant, task)})
    return records


def peak(variant: Variant, task: Task) -> float:
    if task.device == "cuda":
        return peak_memory.peak_mib(variant, task)
    environment = {name: value for name, value in os.environ.items() if name not in machine.CLEAN_ALLOCATOR}
    return peak_memory.in_fresh_process(variant, task, Path(__file__).resolve().parent, environment)


def write(results: Record, path: Path) -> None:
    """Write the results as JSON, rounded to what can be measured."""
    for task in results["tasks"]:
        times = task["milliseconds"]
        task["milliseconds"] = {name: [round(ms, 5) for ms in values] for name, values in times.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


def write_tables(results: Record, stem: Path, readme: Path | None) -> None:
    """Write tables to the terminal, to a file and, with the first plot, into the README; plots beside the JSON."""
    text = publish.markdown(results)
    print(text)
    stem.with_name(f"{stem.name}.md").write_text(text + "\n")
    plots = publish.plot_tables(results, stem)
    print("Plots:", *plots, file=sys.stderr)
    if readme is not None:
        suite = "heads " if results.get("suite") == "heads" else ""
        name = f"benchmark {suite}{'cuda' if results['machine']['gpu'] else 'cpu'}"
        picture = f"![Time of every variant]({os.path.relpath(plots[0], readme.parent)})\n\n"
        fill_readme(readme, name, picture + publish.markdown(results, brief=True))
