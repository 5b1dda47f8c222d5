"""Training with the tokens of a trained teacher's attention map (Sparse DETR, appendix A.9, table 7).

Stage one trains the dense model. In stage two its decoder's attention map chooses the tokens of a new model without a
scoring network: an upper bound, since inference needs the teacher too.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from pathlib import Path

from detectron2.config import LazyCall as L

from sparse_detr.analysis.tables import mean_and_deviation
from sparse_detr.budget_table import file_digest
from sparse_detr.errors import UserError
from sparse_detr.recipes.sparse_detr import sparsify
from sparse_detr.studies.driver import Conclusion, Result, Results, Study, grouped, mean_of, spread_of
from sparse_detr.studies.taught import TaughtDETR, TeacherScorer, frozen_teacher
from sparse_detr.studies.training import (
    add_training,
    cautions_of,
    check_training,
    dense_config,
    judged,
    settings_of,
    train,
)

PAPER_RHO, PAPER_LOSS, WITHIN = 0.45, 0.1, 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the study's options."""
    add_training(parser, rhos=(0.1, 0.3, 0.45))


def make(args: argparse.Namespace) -> Study:
    """Return the study."""
    check_training(args)
    if 1 in args.rhos:
        raise UserError("--rhos 1 is the teacher itself, which is trained anyway; leave it out")
    parts = {}
    for seed in args.seeds:
        parts[f"teacher seed {seed}"] = partial(measure_teacher, args, seed)
        for rho in args.rhos:
            parts[f"taught at {rho:g} seed {seed}"] = partial(measure_student, args, rho, seed)
    return Study("teacher", parts, settings_of(args), table, draw, conclude)


def _folder(args: argparse.Namespace, seed: int) -> Path:
    return args.output / f"teacher_seed{seed}"


def measure_teacher(args: argparse.Namespace, seed: int) -> Result:
    """Train the dense model; return its scores."""
    return {"rho": 1.0, **train(dense_config(args), args, _folder(args, seed), seed)}


def measure_student(args: argparse.Namespace, rho: float, seed: int) -> Result:
    """Train a model with the tokens of the teacher; return its scores."""
    cfg = dense_config(args)
    teacher = copy.deepcopy(cfg.model)
    sparsify(cfg.model, keep_ratio=rho, scorer="random")
    cfg.model.selector.scorer = L(TeacherScorer)()
    cfg.model._target_ = TaughtDETR
    teacher.num_classes = "${..num_classes}"
    weights = _folder(args, seed) / "model_final.pth"
    cfg.model.teacher = L(frozen_teacher)(model=teacher, weights=str(weights.resolve()))
    cfg.model.teacher.model.num_classes = "${...num_classes}"
    folder = args.output / f"taught_rho{100 * rho:g}_seed{seed}"
    return {"rho": rho, **train(cfg, args, folder, seed, {"weights of the teacher": file_digest(weights)})}


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return one row a rho; 100 % is the teacher."""
    rows = []
    for (rho,), runs in sorted(grouped(results, ("rho",)).items()):
        scores = [mean_and_deviation([run[score] for run in runs]) for score in ("AP", "AP50")]
        name = "100 (the teacher)" if rho == 1 else f"{100 * rho:g}"
        rows.append([name, f"{len(runs)}", *scores])
    return ["tokens of the teacher's map, %", "seeds", "AP", "AP50"], rows


def draw(results: Results, path: Path) -> None:
    """Draw AP over rho, the teacher at 100 %."""
    from sparse_detr.studies.picture import figure_of, save

    figure, axes = figure_of("share of the tokens that the encoder refines, %", "AP")
    groups = sorted(grouped(results, ("rho",)).items())
    points = [(100 * rho, mean_of(runs, "AP"), spread_of(runs, "AP")) for (rho,), runs in groups if rho != 1]
    x, y, spread = zip(*points, strict=True)
    axes.errorbar(x, y, yerr=spread, marker="o", capsize=3, label="tokens of the teacher's attention map")
    axes.set_xlim(0, 105)
    axes.axhline(mean_of(dict(groups)[(1.0,)], "AP"), color="gray", linestyle="--", label="the teacher, all tokens")
    save(figure, axes, path)


def conclude(results: Results) -> Conclusion:
    """Check that near 45 % of the tokens nothing is lost."""
    groups = grouped(results, ("rho",))
    means = {rho: mean_of(runs, "AP") for (rho,), runs in groups.items()}
    nearest = min((rho for rho in means if rho != 1), key=lambda rho: abs(rho - PAPER_RHO))
    loss = means[1.0] - means[nearest]
    cautions = cautions_of(groups, max(means.values()))
    if abs(nearest - PAPER_RHO) > 0.1:
        cautions.append(f"the rho nearest to {100 * PAPER_RHO:g} % is {100 * nearest:g} %")
    return Conclusion(
        judged(loss <= PAPER_LOSS + WITHIN, max(means.values())),
        f"with the {100 * PAPER_RHO:g} % of the tokens that a teacher's decoder attends to most, a model loses about "
        f"{PAPER_LOSS} AP (rule: at most {PAPER_LOSS + WITHIN:g})",
        f"it loses {loss:.1f} AP at {100 * nearest:g} %",
        cautions,
    )
