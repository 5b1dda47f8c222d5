"""The depth of the encoder, with and without the auxiliary loss of its layers (Sparse DETR, section 4.3).

The encoder refines a share rho of the tokens, so more layers cost little.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from sparse_detr.analysis.tables import mean_and_deviation
from sparse_detr.checks import check_share
from sparse_detr.errors import UserError
from sparse_detr.recipes.sparse_detr import sparsify
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

DEPTHS = (3, 6, 9, 12)
NAMES = {True: "with the loss", False: "without the loss"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the study's options."""
    add_training(parser)
    parser.add_argument("--rho", type=float, default=0.3, metavar="R", help="share of the tokens (0.3)")
    parser.add_argument(
        "--depths", nargs="+", type=int, default=list(DEPTHS), metavar="N", help="layers of the encoder (3 6 9 12)"
    )


def make(args: argparse.Namespace) -> Study:
    """Return the study."""
    check_training(args)
    check_share("--rho", args.rho)
    if min(args.depths) < 2 or len(set(args.depths)) < 2:
        text = " ".join(map(str, args.depths))
        raise UserError(f"--depths {text} compares nothing; give two numbers or more, each 2 or more")
    parts = {
        f"{depth} layers {NAMES[supervised]} seed {seed}": partial(measure, args, depth, supervised, seed)
        for seed in args.seeds
        for depth in sorted(set(args.depths))
        for supervised in (True, False)
    }
    return Study("depth", parts, {**settings_of(args), "rho": args.rho}, table, draw, conclude)


def measure(args: argparse.Namespace, depth: int, supervised: bool, seed: int) -> Result:
    """Train one model; return its scores."""
    cfg = dense_config(args)
    sparsify(cfg.model, keep_ratio=args.rho)
    cfg.model.encoder.layers.count = depth
    cfg.model.heads.encoder_layers = depth - 1 if supervised else 0
    folder = args.output / f"depth{depth}_{'with' if supervised else 'without'}_loss_seed{seed}"
    return {"depth": depth, "supervised": supervised, **train(cfg, args, folder, seed)}


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return one row a depth, with and without the loss side by side."""
    groups = grouped(results, ("depth", "supervised"))
    rows = []
    for depth in sorted({depth for depth, _ in groups}):
        cells = [
            mean_and_deviation([run[score] for run in groups[depth, supervised]])
            for score in ("AP", "AP50")
            for supervised in (True, False)
        ]
        rows.append([f"{depth}", *cells])
    head = [f"{score} {NAMES[supervised]}" for score in ("AP", "AP50") for supervised in (True, False)]
    return ["encoder layers", *head], rows


def draw(results: Results, path: Path) -> None:
    """Draw AP over depth, with and without the loss."""
    from sparse_detr.studies.picture import figure_of, save

    figure, axes = figure_of("encoder layers", "AP")
    groups = grouped(results, ("depth", "supervised"))
    for number, (supervised, label) in enumerate(NAMES.items()):
        points = sorted(
            (d, mean_of(runs, "AP"), spread_of(runs, "AP")) for (d, s), runs in groups.items() if s is supervised
        )
        x, y, spread = zip(*points, strict=True)
        axes.errorbar(x, y, yerr=spread, color=f"C{number}", marker="o", capsize=3, label=label)
        axes.set_xticks(x)
    save(figure, axes, path)


def conclude(results: Results) -> Conclusion:
    """Check that the loss helps the deepest encoder most, and that depth pays with it."""
    groups = grouped(results, ("depth", "supervised"))
    depths = sorted({depth for depth, _ in groups})
    ap = {key: mean_of(runs, "AP") for key, runs in groups.items()}
    gains = {depth: ap[depth, True] - ap[depth, False] for depth in depths}
    first, last = depths[0], depths[-1]
    agrees = gains[last] > gains[first] and gains[last] > 0 and ap[last, True] >= ap[first, True]
    found = (
        f"the loss gains {gains[first]:+.1f} AP with {first} layers and {gains[last]:+.1f} with {last}, and with it "
        f"{last} layers have {ap[last, True] - ap[first, True]:+.1f} AP against {first}"
    )
    return Conclusion(
        judged(agrees, max(ap.values())),
        "the auxiliary loss lets deep encoders train (rule: it gains more with the most layers than with the fewest, "
        "and with it the most layers are no worse than the fewest)",
        found,
        cautions_of(groups, max(ap.values())),
    )
