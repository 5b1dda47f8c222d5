"""Train variants of the quick model over several seeds and write a table of their AP into a README.

    python scripts/measure.py sample --iterations rho10=700 rho30=600 rho100=330
    python scripts/measure.py blood-cells --iterations rho30=900 dense=580 --seeds 0 1 2 -- --train-json A ...

What follows `--` goes to `train_net.py` as it is. A run that is finished already is not repeated.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SPARSE, DENSE = "configs/quick/sparse_detr_mnv2.py", "configs/quick/efficient_detr_mnv2.py"
VARIANTS = {
    "rho10": ("Sparse DETR, rho 10 %", SPARSE, ["model.selector.keep_ratio=0.1"]),
    "rho30": ("Sparse DETR, rho 30 %", SPARSE, ["model.selector.keep_ratio=0.3"]),
    "rho100": ("Sparse DETR, rho 100 %", SPARSE, ["model.selector.keep_ratio=1.0"]),
    "dense": ("dense (Efficient DETR)", DENSE, []),
}
SCORES = ("AP", "AP50", "AP75")


def main() -> int:
    """Run what is missing, then write JSON and table."""
    own, passed_on = split_arguments(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the table, of its marker in the README and of its JSON file")
    parser.add_argument("--iterations", nargs="+", type=variant_and_iterations, required=True, metavar="VARIANT=N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("output/measure"))
    parser.add_argument("--readme", type=Path, default=ROOT / "projects/SparseDETR/README.md")
    args = parser.parse_args(own)
    results = {variant: measure(args, variant, iterations, passed_on) for variant, iterations in args.iterations}
    write_results(args, results, passed_on)
    print(table(results))
    return 0


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments before and after the first `--`."""
    if "--" not in arguments:
        return arguments, []
    position = arguments.index("--")
    return arguments[:position], arguments[position + 1 :]


def variant_and_iterations(text: str) -> tuple[str, int]:
    """`rho10=700` -> ("rho10", 700)."""
    variant, _, iterations = text.partition("=")
    if variant not in VARIANTS or not iterations.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not VARIANT=ITERATIONS with a variant of {', '.join(VARIANTS)}")
    return variant, int(iterations)


def measure(args: argparse.Namespace, variant: str, iterations: int, passed_on: list[str]) -> list[dict[str, float]]:
    """The scores of one variant for every seed."""
    _, config, overrides = VARIANTS[variant]
    overrides = [*overrides, f"train.max_iter={iterations}", f"train.eval_period={iterations}"]
    runs = []
    for seed in args.seeds:
        folder = args.output / args.name / f"{variant}_seed{seed}"
        if not final_scores(folder):
            print(f"==> {variant}, seed {seed}: {folder}", flush=True)
            command = [sys.executable, "train_net.py", "--config-file", config, "--output-dir", str(folder.resolve())]
            subprocess.run([*command, *passed_on, *overrides, f"train.seed={seed}"], cwd=ROOT, check=True)
        runs.append(final_scores(folder))
    return runs


def final_scores(folder: Path) -> dict[str, float]:
    """AP of the finished run in a folder, its seconds an iteration and its iterations; empty if there is none."""
    metrics = folder / "metrics.json"
    if not (folder / "model_final.pth").is_file() or not metrics.is_file():
        return {}
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    scores = [line for line in lines if "bbox/AP" in line]
    seconds = statistics.median(line["time"] for line in lines if "time" in line)
    return {
        **{key.removeprefix("bbox/"): value for key, value in scores[-1].items() if key.startswith("bbox/")},
        "seconds_per_iteration": seconds,
        "iterations": scores[-1]["iteration"],
    }


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Markdown: mean and, over several seeds, standard deviation."""
    rows = ["| | iterations | s / iteration | " + " | ".join(SCORES) + " |", "|---" * (3 + len(SCORES)) + "|"]
    for variant, runs in results.items():
        speed = statistics.median(run["seconds_per_iteration"] for run in runs)
        cells = [VARIANTS[variant][0], f"{runs[0]['iterations']:.0f}", f"{speed:.2f}"]
        rows.append(
            "| " + " | ".join(cells + [mean_and_spread([run[score] for run in runs]) for score in SCORES]) + " |"
        )
    return "\n".join(rows)


def mean_and_spread(values: list[float]) -> str:
    """`mean ± standard deviation`, or the value if there is one."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def write_results(args: argparse.Namespace, results: dict[str, list[dict[str, float]]], passed_on: list[str]) -> None:
    """JSON beside the README, and the table between the README's markers."""
    record = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "seeds": args.seeds,
        "overrides": [argument for argument in passed_on if "=" in argument],
        "results": results,
    }
    folder = args.readme.parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{args.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    start, end = f"<!-- table {args.name} -->", f"<!-- end {args.name} -->"
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    text = args.readme.read_text()
    if pattern.search(text):
        args.readme.write_text(pattern.sub(lambda _: f"{start}\n{table(results)}\n{end}", text))


if __name__ == "__main__":
    sys.exit(main())
