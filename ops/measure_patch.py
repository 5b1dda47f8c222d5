"""Time models of transformers as they are and with the op under them: `sparse_detr.ops.patch("transformers")`.

    python ops/measure_patch.py --output ops/results/patch.json --readme ops/README.md

Random weights, one image, one thread, thread CPU time; both variants run in turn, and both with the clean allocator of
`ops/benchmark`, unless --system-allocator asks for the C library's settings. Writes every repetition's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / "ops"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from benchmark import machine, transformers_models  # noqa: E402
from benchmark.timing import thread_time  # noqa: E402

from sparse_detr import ops  # noqa: E402
from sparse_detr.analysis.tables import fill_readme, markdown_table  # noqa: E402


def main() -> None:
    """Time the models and print the table."""
    args = parse()
    if not args.system_allocator and machine.allocator() != machine.CLEAN_ALLOCATOR:
        environment = {**os.environ, **machine.CLEAN_ALLOCATOR}  # the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    torch.set_num_threads(1)
    record = {"machine": machine.machine_record("cpu"), "image": args.image, "models": {}}
    for name in args.models:
        record["models"][name] = time_model(name, *args.image, args.repetitions)
        print(*cells(name, record["models"][name]), sep=" | ", file=sys.stderr, flush=True)
    text = report(record)
    print(text)
    if args.output:
        args.output.write_text(json.dumps(record, indent=1) + "\n")
    if args.readme:
        fill_readme(args.readme, "patch", text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(transformers_models.MODELS)
    parser.add_argument("--models", nargs="+", choices=names, default=names, metavar="MODEL", help=", ".join(names))
    parser.add_argument("--image", nargs=2, type=int, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repetitions", type=int, default=7, help="after one that warms up")
    parser.add_argument("--system-allocator", action="store_true")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--readme", type=Path, help="fill its marks `table patch`")
    return parser.parse_args()


def time_model(name: str, height: int, width: int, repetitions: int) -> dict[str, Any]:
    """Return the milliseconds of every repetition, and how far the outputs are apart."""
    model, inputs = transformers_models.build(name, height=height, width=width)
    times: dict[str, list[float]] = {"as it is": [], "patched": []}
    outputs = {}
    for repetition in range(repetitions + 1):
        for variant in sorted(times, reverse=repetition % 2 == 1):  # no variant always runs first
            if variant == "patched":
                ops.patch("transformers", strict=True)
            with torch.no_grad():
                duration = thread_time(lambda: outputs.update({variant: model(**inputs)[0]}))  # noqa: B023
            ops.unpatch("transformers")
            if repetition:
                times[variant].append(duration)
    before, after = outputs["as it is"].double(), outputs["patched"].double()
    finite = before.isfinite()  # Grounding DINO's logits of words that are not there are -inf
    difference = float((before - after)[finite].abs().max() / before[finite].abs().max())
    return {"milliseconds": times, "relative_difference": difference}


def report(record: dict[str, Any]) -> str:
    """Return the table with what it was taken with."""
    facts, (height, width) = record["machine"], record["image"]
    head = ["", "as it is, ms", "patched, ms", "times faster (quartiles)", "difference"]
    table = markdown_table(head, (cells(name, one) for name, one in record["models"].items()))
    allocator = "clean" if facts["allocator"] == machine.CLEAN_ALLOCATOR else "as the system has it"
    note = (
        f"{facts['cpu']}, one thread, thread CPU time, medians of "
        f"{len(next(iter(record['models'].values()))['milliseconds']['patched'])}, variants in turn; image "
        f"{height}x{width}, random weights, float32; allocator: {allocator}; load before "
        f"{facts['load_average_before']}; torch {facts['torch']}, transformers {facts['peers']['transformers']}; "
        f"commit {facts['commit']}, {facts['date']}. Difference: of the first output, relative to its largest number."
    )
    return f"{table}\n\n{note}"


def cells(name: str, result: dict[str, Any]) -> list[str]:
    before, after = result["milliseconds"]["as it is"], result["milliseconds"]["patched"]
    ratios = [old / new for old, new in zip(before, after, strict=True)]
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return [
        name,
        f"{statistics.median(before):.0f}",
        f"{statistics.median(after):.0f}",
        f"{statistics.median(ratios):.2f}x ({low:.2f} to {high:.2f})",
        f"{result['relative_difference']:.0e}",
    ]


if __name__ == "__main__":
    main()
