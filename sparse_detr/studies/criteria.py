"""Which tokens to refine: the scoring network against the objectness score and random tokens (section 4.3, figure 4).

As in the paper no model has an auxiliary loss of the encoder, and the dense model is the level to reach.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from sparse_detr.analysis.tables import mean_and_deviation
from sparse_detr.recipes.sparse_detr import Scorer, sparsify
from sparse_detr.studies.driver import Conclusion, Result, Results, Study, grouped, mean_of, spread_of
from sparse_detr.studies.training import (
    add_training,
    cautions_of,
    check_training,
    dense_config,
    judged,
    settings_of,
    train,
)

SCORERS: dict[Scorer, str] = {
    "attention_map": "decoder's attention map",
    "objectness": "objectness",
    "random": "random",
}
DENSE = "all tokens"
CHANCE = 0.5
"""AP by which the attention map may be below the objectness score and still count as no worse."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the study's options."""
    add_training(parser, rhos=(0.1, 0.3, 0.5))


def make(args: argparse.Namespace) -> Study:
    """Return the study."""
    check_training(args)
    parts = {}
    for seed in args.seeds:
        parts[f"dense seed {seed}"] = partial(measure, args, None, 1.0, seed)
        for rho in args.rhos:
            for scorer in SCORERS:
                parts[f"{scorer} at {rho:g} seed {seed}"] = partial(measure, args, scorer, rho, seed)
    return Study("criteria", parts, settings_of(args), table, draw, conclude)


def measure(args: argparse.Namespace, scorer: Scorer | None, rho: float, seed: int) -> Result:
    """Train one model; return its scores."""
    cfg = dense_config(args)
    if scorer is not None:
        sparsify(cfg.model, keep_ratio=rho, scorer=scorer)
    folder = args.output / f"{scorer or 'dense'}_rho{100 * rho:g}_seed{seed}"
    return {"scorer": scorer or DENSE, "rho": rho, **train(cfg, args, folder, seed)}


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return one row a scorer and rho."""
    rows = []
    for (scorer, rho), runs in grouped(results, ("scorer", "rho")).items():
        scores = [mean_and_deviation([run[score] for run in runs]) for score in ("AP", "AP50")]
        rows.append([SCORERS.get(scorer, scorer), f"{100 * rho:g}", f"{len(runs)}", *scores])
    return ["tokens chosen by", "rho, %", "seeds", "AP", "AP50"], rows


def draw(results: Results, path: Path) -> None:
    """Draw AP over rho, a line a scorer, the dense model as a level."""
    from sparse_detr.studies.picture import figure_of, save

    figure, axes = figure_of("share of the tokens that the encoder refines, %", "AP")
    groups = grouped(results, ("scorer", "rho"))
    for number, (scorer, label) in enumerate(SCORERS.items()):
        points = sorted(
            (100 * rho, mean_of(runs, "AP"), spread_of(runs, "AP")) for (s, rho), runs in groups.items() if s == scorer
        )
        x, y, spread = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=spread, color=f"C{number}", marker="o", capsize=3, label=label)
    axes.set_xlim(0, 105)
    axes.axhline(mean_of(groups[DENSE, 1.0], "AP"), color="gray", linestyle="--", label=DENSE)
    save(figure, axes, path)


def conclude(results: Results) -> Conclusion:
    """Check that random is worst at every rho, and the attention map no worse than objectness."""
    groups = grouped(results, ("scorer", "rho"))
    rhos = sorted({rho for scorer, rho in groups if scorer != DENSE})
    means = {rho: {scorer: mean_of(groups[scorer, rho], "AP") for scorer in SCORERS} for rho in rhos}
    random_worst = all(
        means[rho]["random"] < min(means[rho]["attention_map"], means[rho]["objectness"]) for rho in rhos
    )
    map_best = all(means[rho]["attention_map"] >= means[rho]["objectness"] - CHANCE for rho in rhos)
    found = "; ".join(
        f"at {100 * rho:g} % " + ", ".join(f"{SCORERS[scorer]} {ap:.1f}" for scorer, ap in means[rho].items()) + " AP"
        for rho in rhos
    )
    best = max(mean_of(runs, "AP") for runs in groups.values())
    cautions = cautions_of(groups, best)
    return Conclusion(
        judged(random_worst and map_best, best),
        "random tokens are worst at every rho, and the attention map is at least as good as objectness (rule: at most "
        f"{CHANCE} AP below it)",
        found,
        cautions,
    )
