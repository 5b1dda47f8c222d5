"""Compare one elastic checkpoint with checkpoints that are each trained at their own share of the tokens.

    python scripts/measure_elastic.py elastic --iterations 500 --seeds 0 1 2 --readme docs/elastic.md -- \
        --train-json A --train-images B --val-json C --val-images D model.heads.encoder_layers=0
    python scripts/measure_elastic.py elastic --redraw --readme docs/elastic.md

For every seed it trains a model at rho 10, 30, 50 and 100 % with N iterations each, and the elastic model with N and
with 4 N iterations: as long as each of the others, and as all of them together. Every model is evaluated at all four
shares, the elastic ones also at further shares and at the `--budgets`: per image (`mass:`) and per level (`levels:`).
Such a budget is compared with the fixed share of equal FLOPs: its mean share of refined tokens over layers and images
is counted, and the AP50 of the fixed shares is interpolated there. FLOPs of the encoder are a constant and a multiple
of that share, so for images of one size equal shares are equal FLOPs.

It can be stopped at any time and called again: finished trainings and evaluations are not repeated, and an interrupted
training goes on from its last checkpoint. Numbers and picture go into `results/` beside the README, tables into its
blocks NAME and NAME-budgets. Arguments after `--` go to `train_net.py`.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import measure  # noqa: E402 - after the choice of the backend
import numpy as np  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from torch import nn  # noqa: E402

from sparse_detr.analysis.tables import fill_readme, markdown_table, mean_and_deviation  # noqa: E402
from sparse_detr.benchmark.sweep import SelectionMeter  # noqa: E402
from sparse_detr.config.run import Run  # noqa: E402
from sparse_detr.engine.evaluate import evaluate  # noqa: E402
from sparse_detr.engine.weights import load_trained_weights  # noqa: E402
from sparse_detr.errors import UserError, run_script  # noqa: E402
from sparse_detr.files import write_text_atomically  # noqa: E402
from sparse_detr.studies.training import final_scores  # noqa: E402

SHARES = {"rho10": "0.1", "rho30": "0.3", "rho50": "0.5", "rho100": "1.0"}
"""The models with a share of their own, and that share as a budget."""
BETWEEN = ("0.05", "0.15", "0.2", "0.4", "0.7")
"""Further shares at which the elastic models are evaluated, between which little is left to interpolate."""
EACH, TOTAL = "elastic", "elastic_total"
MODELS = [*SHARES, EACH, TOTAL]
LABELS = {EACH: "elastic, same iterations as each", TOTAL: "elastic, same iterations as all together"}
OWN = "trained at this share"
BUDGETS = ("mass:0.5", "mass:0.7", "mass:0.85", "mass:0.95")
BUDGETS += ("levels:0.05,0.3,1", "levels:0.1,0.5,1", "levels:0.25,0.5,1", "levels:0.4,0.8,1")
COLORS = {OWN: "black", EACH: "tab:orange", TOTAL: "tab:blue"}

Scores = dict[str, float]
"""AP, AP50, ... and `refined`, the mean share of the tokens that an encoder layer refined."""


def main() -> int:
    """Run what is missing, then write the JSON file, the picture and the tables."""
    own, passed_on = measure.split_arguments(sys.argv[1:])
    args = parse(own)
    folder = args.readme.parent / "results"
    folder.mkdir(exist_ok=True)
    study = Study(folder / f"{args.name}.json", args.iterations, passed_on, keep=args.redraw)
    if not args.redraw:
        for step in missing_steps(args, study):
            run_step(args, study, step, passed_on)
    report(args, study, folder)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the JSON file, of the picture and of the blocks in the README")
    parser.add_argument("--iterations", type=int, default=500, metavar="N", help="of each model with its own share")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS), metavar="B", help="of the elastic models")
    parser.add_argument("--output", type=Path, default=Path("output/measure"), help="folder of the trainings")
    parser.add_argument("--readme", type=Path, default=measure.ROOT / "docs/elastic.md")
    parser.add_argument("--redraw", action="store_true", help="only draw and write what the JSON file holds")
    return parser.parse_args(arguments)


class Study:
    """The scores of all models, seeds and budgets in a JSON file, which grows with every evaluation.

    Args:
        path: the file; it need not exist.
        iterations: N.
        passed_on: arguments of the trainings. Scores of other overrides or iterations are not taken over.
        keep: take over the scores, whatever they are of.
    """

    def __init__(self, path: Path, iterations: int, passed_on: Sequence[str], *, keep: bool = False):
        self.path = path
        facts: dict[str, Any] = {
            "iterations": iterations,
            "overrides": [argument for argument in passed_on if "=" in argument],
        }
        old = json.loads(path.read_text()) if path.is_file() else {}
        same = keep or all(old.get(name) == value for name, value in facts.items())
        self.facts = {name: old[name] for name in facts if name in old} if keep else facts
        self.results: dict[str, dict[str, dict[str, Scores]]] = old.get("results", {}) if same else {}

    def get(self, model: str, seed: int, budget: str) -> Scores | None:
        """Return scores; None if they are missing."""
        return self.results.get(model, {}).get(str(seed), {}).get(budget)

    def add(self, model: str, seed: int, budget: str, scores: Scores) -> None:
        """Add scores, and write the file."""
        self.results.setdefault(model, {}).setdefault(str(seed), {})[budget] = scores
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        write_text_atomically(
            self.path, json.dumps({"machine": machine, **self.facts, "results": self.results}, indent=1) + "\n"
        )

    def values(self, model: str, budget: str, score: str) -> list[float]:
        """Return one score of every seed that has it."""
        return [seeds[budget][score] for seeds in self.results.get(model, {}).values() if budget in seeds]


def missing_steps(args: argparse.Namespace, study: Study) -> list[tuple[str, int]]:
    """Return the models and seeds that have budgets without scores; seed by seed, so that a first result is early."""
    return [
        (model, seed)
        for seed in args.seeds
        for model in MODELS
        if any(study.get(model, seed, budget) is None for budget in budgets_of(model, args.budgets))
    ]


def budgets_of(model: str, budgets: Sequence[str]) -> list[str]:
    """Return the budgets at which a model is evaluated."""
    return [*SHARES.values(), *((*BETWEEN, *budgets) if model in (EACH, TOTAL) else ())]


def run_step(args: argparse.Namespace, study: Study, step: tuple[str, int], passed_on: list[str]) -> None:
    """Train a model with a seed, unless it is trained, and evaluate it at every budget without scores."""
    model, seed = step
    variant = EACH if model == TOTAL else model
    iterations = args.iterations * (len(SHARES) if model == TOTAL else 1)
    folder = args.output / args.name / f"{model}_seed{seed}"
    if not is_trained(folder, iterations):
        measure.train(folder, variant, seed, iterations, passed_on)
    run = measure.run_of(variant, [*passed_on, f"train.output_dir={folder.resolve() / 'budgets'}"])
    detector = run.build_model()
    load_trained_weights(detector, folder / "model_final.pth")
    missing = [b for b in budgets_of(model, args.budgets) if study.get(model, seed, b) is None]
    start = time.monotonic()
    for number, budget in enumerate(missing):
        study.add(model, seed, budget, scores_at(run, detector.eval(), budget))
        left = (time.monotonic() - start) / (number + 1) * (len(missing) - number - 1)
        print(f"{model}, seed {seed}: {number + 1} of {len(missing)} budgets, {left / 60:.1f} min left", flush=True)


def is_trained(folder: Path, iterations: int) -> bool:
    """Return whether a training in a folder is finished.

    Raises:
        UserError: it is, but had another number of iterations.
    """
    done = final_scores(folder).get("iterations")
    if done is not None and abs(done + 1 - iterations) > 1:
        raise UserError(
            f"{folder} holds a training of {done + 1:.0f} iterations, not of {iterations}; give another --output"
        )
    return done is not None


def scores_at(run: Run, detector: nn.Module, budget: str) -> Scores:
    """Evaluate a detector at a budget."""
    meter = SelectionMeter(detector, budget).eval()
    scores = evaluate(run, meter)["bbox"]
    found = {name: value for name, value in scores.items() if name.startswith("AP") and "-" not in name}
    return {**found, "refined": meter.facts["mean_kept_share"]}


def report(args: argparse.Namespace, study: Study, folder: Path) -> None:
    """Write the picture, and the tables into the README."""
    shares = table_of_shares(study)
    print(shares)
    plot(folder / f"{args.name}.png", study)
    picture = f"![AP50 at every share of tokens](results/{args.name}.png)"
    fill_readme(args.readme, args.name, f"{shares}\n\n{verdict(study)}\n\n{picture}")
    budgets = table_of_budgets(study)
    print(budgets)
    fill_readme(args.readme, f"{args.name}-budgets", budgets)


def table_of_shares(study: Study, score: str = "AP50") -> str:
    """Return a table: a row a model, a column a share."""
    rows = []
    for name, models in curves().items():
        cells = [study.values(model, budget, score) for budget, model in models.items()]
        rows.append([LABELS.get(name, name), *(mean_and_deviation(cell) if cell else "" for cell in cells)])
    header = [f"{score} at", *(f"rho {percent(budget)}" for budget in SHARES.values())]
    return markdown_table(header, rows)


def curves() -> dict[str, dict[str, str]]:
    """Return the rows of the table: name -> budget -> the model whose score stands there."""
    own = {OWN: {budget: model for model, budget in SHARES.items()}}
    one_model = {model: dict.fromkeys(SHARES.values(), model) for model in (EACH, TOTAL, *SHARES)}
    names = {model: f"trained at {percent(budget)}" for model, budget in SHARES.items()}
    return own | {names.get(model, model): row for model, row in one_model.items()}


def is_share(budget: str) -> bool:
    """Return whether a budget is a fixed share of the tokens."""
    return ":" not in budget


def percent(budget: str) -> str:
    """Return a share in percent."""
    return f"{100 * float(budget):g} %"


def verdict(study: Study, score: str = "AP50", within: float = 1.0) -> str:
    """Return a sentence for every elastic model: its distance to the models with a share of their own."""
    sentences = []
    for model in (EACH, TOTAL):
        gaps = {}
        for name, budget in SHARES.items():
            ours, theirs = study.values(model, budget, score), study.values(name, budget, score)
            if ours and theirs:
                gaps[budget] = statistics.fmean(ours) - statistics.fmean(theirs)
        if gaps:
            listed = ", ".join(f"{gap:+.1f} at {percent(budget)}" for budget, gap in gaps.items())
            worst = min(gaps.values())
            judged = "at no share more than" if worst >= -within else "at some share more than"
            sentences.append(
                f"The model *{LABELS[model]}* differs from those trained at their own share by {listed} {score}: it is "
                f"{judged} {within:g} {score} below them."
            )
    return "\n".join(sentences)


def table_of_budgets(study: Study, score: str = "AP50") -> str:
    """Return a table of the budgets per image and per level against the fixed share of equal FLOPs.

    The difference is that of every seed, so its deviation is not that of the seeds.
    """
    rows = []
    for model in (EACH, TOTAL):
        seeds = study.results.get(model, {})
        budgets = [budget for scores in seeds.values() for budget in scores if not is_share(budget)]
        for budget in dict.fromkeys(budgets):
            found = [scores for scores in seeds.values() if budget in scores]
            fixed = [fixed_score(scores, scores[budget]["refined"], score) for scores in found]
            gains = [scores[budget][score] - other for scores, other in zip(found, fixed, strict=True)]
            shares = [100 * scores[budget]["refined"] for scores in found]
            cells = ([scores[budget][score] for scores in found], fixed, gains)
            rows.append([LABELS[model], f"`{budget}`", mean_and_deviation(shares), *map(mean_and_deviation, cells)])
    header = ["model", "budget", "tokens refined, %", score, f"{score} of the fixed share", "difference"]
    return markdown_table(header, rows)


def fixed_score(scores: Mapping[str, Scores], refined: float, score: str) -> float:
    """Return the score of the fixed share that refines as many tokens, between those that were measured."""
    points = sorted((found["refined"], found[score]) for budget, found in scores.items() if is_share(budget))
    return float(np.interp(refined, *zip(*points, strict=True)))


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return the heights, raised from below where two are nearer than a gap."""
    raised = list(heights)
    order = sorted(range(len(raised)), key=raised.__getitem__)
    for lower, upper in itertools.pairwise(order):
        raised[upper] = max(raised[upper], raised[lower] + gap)
    return raised


def plot(path: Path, study: Study, score: str = "AP50") -> None:
    """Draw the score over the share of tokens, with the deviation over the seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    ends: dict[str, float] = {}
    for name, models in curves().items():
        if name in (EACH, TOTAL):
            models = dict.fromkeys(sorted((*models, *BETWEEN), key=float), name)
        points = [(100 * float(budget), study.values(model, budget, score)) for budget, model in models.items()]
        points = [(share, values) for share, values in points if values]
        if not points:
            continue
        x, means = [share for share, _ in points], [statistics.fmean(values) for _, values in points]
        if name not in COLORS:
            axes.plot(x, means, color="0.7", linewidth=1, zorder=1)
            ends[name] = means[-1]
            continue
        spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(x, means, yerr=spread, color=COLORS[name], marker="o", capsize=3, label=LABELS.get(name, name))
    axes.set(xlabel="share of the tokens that the encoder refines, %", ylabel=score)
    axes.set(xlim=(0, 122), xticks=range(0, 101, 20))  # room for the names at the right
    line = 0.035 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    for name, height in zip(ends, apart(list(ends.values()), line), strict=True):
        axes.text(102, height, name, fontsize=7, color="0.5", va="center")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    run_script(main)
