"""A model trained at one rho, evaluated at others (Sparse DETR, section 4.3, dynamic sparsification).

No weight depends on rho: only the number of tokens that the encoder refines changes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sparse_detr.analysis.tables import mean_and_deviation
from sparse_detr.checks import check_share
from sparse_detr.errors import UserError
from sparse_detr.studies.driver import Conclusion, Result, Results, Study, grouped, mean_of, spread_of
from sparse_detr.studies.trained import Trained, add_trained, facts_of, trained_of

RHOS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
LOSS = 0.5
"""AP that a larger rho than that of the training may lose. In the paper Sparse DETR gains 0.2 from 30 % to 50 %, and
PnP-DETR loses 5 from 33 % to 50 %."""
REACH = 2
"""Times the rho of the training up to which the rule holds: the numbers that we know of the paper end there."""
FEW_IMAGES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the study's options."""
    add_trained(parser)
    parser.add_argument(
        "--rhos", nargs="+", type=float, default=list(RHOS), metavar="R", help=f"shares ({' '.join(map(str, RHOS))})"
    )


def make(args: argparse.Namespace) -> Study:
    """Return the study."""
    for rho in args.rhos:
        check_share("--rhos", rho)
    models = trained_of(args)
    parts, made_from = {}, {}
    for model in models:
        sources = model.made_from(args.opts)
        for rho in (*args.rhos, 0):
            parts[key := f"{model.key} at {rho:g}"] = partial(measure, model, args.opts, rho)
            made_from[key] = sources
    return Study("other_rho", parts, facts_of(args), table, draw, conclude, made_from)


def measure(trained: Trained, overrides: Sequence[str], rho: float) -> Result:
    """Return the scores of a model at one rho; at 0, those of the model's own budget.

    A dense model has its own budget alone: at every other rho the scores are None.
    """
    from detectron2.evaluation.testing import flatten_results_dict

    from sparse_detr.analysis.cost import gigaflops
    from sparse_detr.budget import check_fits, is_dense
    from sparse_detr.engine.evaluate import WithBudget, evaluate

    model, run = trained.load(overrides)
    facts: dict[str, Any] = {"name": trained.name, "seed": trained.seed, "rho": rho, "own": model.keep_ratio}
    if rho and is_dense(model):
        return {**facts, "AP": None}
    check_fits("--rhos", rho or None, model)
    loader = run.evaluation_sets[0].build_loader()
    cost = gigaflops(model, next(iter(loader))[0]["image"], rho or None)
    scores = flatten_results_dict(evaluate(run, WithBudget(model, rho) if rho else model))
    if "bbox/AP" not in scores:
        raise UserError(f"the evaluation of {trained.config} gives no bbox/AP, only {', '.join(scores)}")
    return {
        **facts,
        "images": len(loader),
        "encoder_gigaflops": cost["encoder"],
        "total_gigaflops": cost["total"],
        "AP": scores["bbox/AP"],
        "AP50": scores["bbox/AP50"],
    }


def _measured(results: Results) -> dict[tuple[Any, ...], list[Result]]:
    """Return the measured results by name, rho of the training and rho; one list has the seeds."""
    known = {key: result for key, result in results.items() if result["AP"] is not None}
    return grouped(known, ("name", "own", "rho"))


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return one row a model and rho."""
    head = ["model", "trained at, %", "evaluated at, %", "encoder GFLOPs", "all GFLOPs", "AP", "AP50"]
    rows = []
    for (name, own, rho), runs in _measured(results).items():
        at = f"{100 * rho:g}" if rho else f"its own, {100 * own:g}"
        flops = [f"{mean_of(runs, f'{part}_gigaflops'):.2f}" for part in ("encoder", "total")]
        scores = [mean_and_deviation([run[score] for run in runs]) for score in ("AP", "AP50")]
        rows.append([name, f"{100 * own:g}", at, *flops, *scores])
    return head, rows


def draw(results: Results, path: Path) -> None:
    """Draw AP over rho: a line a model, its own rho marked; a dense model as a level."""
    from sparse_detr.studies.picture import figure_of, save

    figure, axes = figure_of("share of the tokens that the encoder refines in the evaluation, %", "AP")
    measured = _measured(results)
    for number, name in enumerate(dict.fromkeys(name for name, *_ in measured)):
        color = f"C{number}"
        own = {key: runs for key, runs in measured.items() if key[0] == name}
        points = sorted(
            (100 * rho, mean_of(runs, "AP"), spread_of(runs, "AP")) for (_, _, rho), runs in own.items() if rho
        )
        ((_, trained_at, _), at_own) = next((key, runs) for key, runs in own.items() if not key[2])
        label = f"{name}, trained at {100 * trained_at:g} %"
        if not points:
            axes.axhline(mean_of(at_own, "AP"), color=color, linestyle="--", label=label)
            continue
        x, y, spread = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=spread, color=color, marker="o", capsize=3, label=label)
        axes.plot([100 * trained_at], [mean_of(at_own, "AP")], color=color, marker="*", markersize=15, linestyle="")
    axes.plot([], [], color="gray", marker="*", markersize=12, linestyle="", label="at the rho of the training")
    axes.set_xlim(0, 103)
    save(figure, axes, path)


def conclude(results: Results) -> Conclusion:
    """Check that up to twice the rho of the training no AP is lost; say what is lost beyond."""
    measured = _measured(results)
    near, far = {}, {}
    for (name, own, rho), runs in measured.items():
        if rho > own:
            change = mean_of(runs, "AP") - mean_of(measured[name, own, 0], "AP")
            (near if rho <= REACH * own else far)[f"{name} at {100 * rho:g} %"] = change
    finding = (
        "somewhat more tokens than in training lose nothing (the paper: +0.2 AP from 30 % to 50 %; rule: up to "
        f"{REACH} times the rho of the training, the mean AP is at most {LOSS} below that at the rho of the training)"
    )
    beyond = f"; further away the lowest change is {_worst(far)}" if far else ""
    if not near:
        return Conclusion(None, finding, f"no model was evaluated at a rho in this range{beyond}")
    seeds = min(len(runs) for runs in measured.values())
    images = min(run["images"] for runs in measured.values() for run in runs)
    cautions = [f"{seeds} seed{'s' * (seeds > 1)} cannot tell the spread"] if seeds < 3 else []
    cautions += [f"{images} images are few: half an AP may be chance"] if images < FEW_IMAGES else []
    found = f"the lowest change is {_worst(near)}{beyond}"
    return Conclusion(min(near.values()) >= -LOSS, finding, found, cautions)


def _worst(changes: dict[str, float]) -> str:
    name = min(changes, key=lambda name: changes[name])
    return f"{changes[name]:+.1f} AP, of {name}"
