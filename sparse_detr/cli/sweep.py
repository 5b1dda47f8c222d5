"""Measure one checkpoint with many budgets: AP, FLOPs, time and memory of each, and which one to take.

An interrupted sweep goes on where it stopped; more budgets can be added later. Times are of all budgets in turn on the
same images, on a quiet machine. Afterwards `--budget ms:30` of other commands takes the best one within 30 ms.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import check_fits, checked_budget, is_dense
from sparse_detr.budget_table import PLAIN, TABLE, file_digest
from sparse_detr.cli._budget import HELP
from sparse_detr.cli._model import add_model, add_overrides
from sparse_detr.cli._optimize import PRECISIONS
from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_text_atomically

if TYPE_CHECKING:
    from sparse_detr.benchmark.contestants import Contestant
    from sparse_detr.benchmark.sweep import Sweep

BUDGETS = ("0.05", "0.1", "0.2", "0.3", "0.5", "0.7", "1")
ROUNDS = 20
BUSY = 1  # the exit code if there are no times


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser, config="config of the model and its evaluation data")
    parser.add_argument(
        "--budget", nargs="+", default=list(BUDGETS), metavar="B", help=f"{HELP} (default: {' '.join(BUDGETS)})"
    )
    parser.add_argument(
        "--optimize",
        nargs="*",
        choices=PRECISIONS,
        metavar="PRECISION",
        help=f"also measure the inference form: {', '.join(PRECISIONS)} (fp32 if none is named)",
    )
    parser.add_argument("--max-images", type=int, metavar="N", help="score the first N images alone (default: all)")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"images that each budget is timed on ({ROUNDS})")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of PyTorch on the CPU (default: its own)")
    parser.add_argument(
        "--within-ap",
        type=float,
        default=1.0,
        metavar="X",
        help="answer: the cheapest budget that loses at most X AP (1)",
    )
    parser.add_argument("--under-ms", type=float, metavar="Y", help="answer: the best AP under Y milliseconds")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help=f"folder (default: {TABLE.parent} in the folder of the weights)"
    )
    parser.add_argument("--allow-busy", action="store_true", help="note times though the machine is busy; they say so")
    parser.add_argument("--json", action="store_true", help="print the table as JSON and nothing else")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Measure what is missing, then print table and answers; return 0, or 1 if the machine was too busy for times."""
    check_options(args)
    require_detectron2()
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    folder = args.output or Path(args.weights).parent / TABLE.parent
    sweep, work = _prepare(args, folder)
    missed = work()
    return report(args, sweep, folder, missed)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    if not args.weights.strip():
        raise UserError("--weights is empty; give the checkpoint of a training or of `sparse-detr convert`")
    args.budget = [str(checked_budget("--budget", budget, timed=False)) for budget in args.budget]
    if len(set(args.budget)) < len(args.budget):
        raise UserError(f"--budget names one twice: {' '.join(args.budget)}; name each once")
    for option, value in (("--rounds", args.rounds), ("--max-images", args.max_images), ("--threads", args.threads)):
        if value is not None and value < 1:
            raise UserError(f"{option} {value} cannot be used; give a whole number, 1 or more")
    if not args.within_ap >= 0:  # nan too
        raise UserError(f"--within-ap {args.within_ap:g} is no loss of AP; give 0 or more")
    if args.under_ms is not None and not args.under_ms > 0:
        raise UserError(f"--under-ms {args.under_ms:g} is no time; give milliseconds above 0")


def _prepare(args: argparse.Namespace, folder: Path) -> tuple[Sweep, Any]:
    """Load model and data; return the table and a function that completes it."""
    from sparse_detr.benchmark.images import ImageStream, files_of_evaluation
    from sparse_detr.benchmark.sweep import Sweep, sweep_contestants
    from sparse_detr.config import load_config
    from sparse_detr.config.model import build_detector, build_test_mapper, usable_device
    from sparse_detr.config.own_data import use_own_data
    from sparse_detr.config.run import make_run
    from sparse_detr.engine.weights import load_trained_weights
    from sparse_detr.provenance import check_one_data_set, config_digest, data_digests

    cfg = load_config(args.config_file, args.opts)
    digest = config_digest(cfg)  # before own data write their names into it
    use_own_data(cfg, {}, args.opts)
    description = make_run(cfg)
    if not description.evaluation_sets:
        raise UserError(
            "the config names no evaluation data, and without them there is no AP; give the config.yaml of a training "
            "with --val-json, or name a data set in the config"
        )
    check_one_data_set(description)
    device = usable_device(cfg)
    model = build_detector(cfg, device=device).eval()
    load_trained_weights(model, args.weights, ema=args.ema)
    _check_has_budget(model)
    for budget in args.budget:
        check_fits("--budget", checked_budget("--budget", budget), model)
    forms = [PLAIN, *(args.optimize or ["fp32"])] if args.optimize is not None else [PLAIN]
    asked = [(budget, form) for budget in args.budget for form in forms]
    setting = {
        "config": Path(args.config_file).name,
        "weights": file_digest(args.weights),
        "ema": args.ema,
        "overrides": list(args.opts),
        "config_sha256": digest,
        "data": [name for evaluation in description.evaluation_sets for name in evaluation.names],
        "data_sha256": data_digests(cfg, ["test"]),
        "images": "all images" if args.max_images is None else f"the first {args.max_images} images",
    }
    sweep = Sweep(folder / TABLE.name, setting)
    contestants = sweep_contestants(model, list(dict.fromkeys([*sweep.rows, *asked])))
    make_folder(folder)
    images = ImageStream(files_of_evaluation(cfg, (args.rounds or ROUNDS) + 1), build_test_mapper(cfg))
    return sweep, lambda: _measure(args, sweep, contestants, asked, description, images, device)


def _check_has_budget(model: Any) -> None:
    from sparse_detr.modeling.selection import LevelSelector

    if is_dense(model):
        raise UserError("this model has a dense encoder, which refines every token: there is no budget to sweep")
    if isinstance(model.selector, LevelSelector):
        raise UserError("this model refines levels, not a share of the tokens: there is no budget to sweep")


def _measure(
    args: argparse.Namespace,
    sweep: Sweep,
    contestants: list[Contestant],
    asked: list[tuple[str, str]],
    description: Any,
    images: Any,
    device: str,
) -> str | None:
    """Complete the table; return why times that are asked for are not noted, or None.

    All contestants are timed, those of earlier calls too, since only times of one run can be compared; `asked` are
    scored.
    """
    from sparse_detr.benchmark.machine import find_disturbance, sample_load
    from sparse_detr.benchmark.sweep import (
        FLOP_IMAGES,
        count_entries,
        entry_name,
        needs_times,
        score_entries,
        time_entries,
        true_boxes_of,
    )

    for contestant in contestants:
        sweep.entry(*entry_name(contestant))
    missed = None
    if needs_times(sweep, rounds=args.rounds, threads=args.threads):  # first: they tell soon if it is not quiet
        load = sample_load()
        missed = find_disturbance({"before": load})
        if not missed or args.allow_busy:
            options = {"rounds": args.rounds or ROUNDS, "device": device, "load_before": load}
            missed = time_entries(sweep, contestants, images, allow_busy=args.allow_busy, **options)
    count_entries(sweep, [c for c in contestants if c.counts_flops], images.batch(min(FLOP_IMAGES, images.num_files)))
    names = sweep.record["setting"]["data"]
    scored = [contestant for contestant in contestants if entry_name(contestant) in asked]
    missing = sum(sweep.entry(*entry_name(contestant))["scores"] is None for contestant in scored)
    with _progress(description, args.max_images, missing, quiet=args.json) as step:
        score_entries(
            sweep,
            scored,
            lambda model: _scores(description, model, before_image=step, max_images=args.max_images),
            true_boxes_of(names),
        )
    return missed


def _scores(description: Any, model: Any, **options: Any) -> dict[str, float]:
    """Return the scores of boxes without the tables that evaluators print."""
    from contextlib import redirect_stdout
    from io import StringIO

    from sparse_detr.engine.evaluate import box_scores

    with redirect_stdout(StringIO()):
        return box_scores(description, model, **options)


def _progress(description: Any, max_images: int | None, budgets: int, *, quiet: bool) -> Any:
    """Return a context that gives a function to call before every image; it shows the images done and the time left."""
    from contextlib import contextmanager

    from tqdm import tqdm

    @contextmanager
    def bar() -> Any:
        sizes = [len(evaluation.build_loader()) for evaluation in description.evaluation_sets] if budgets else []
        total = budgets * sum(min(size, max_images or size) for size in sizes)
        with tqdm(
            total=total, desc="scoring", unit="batch", dynamic_ncols=True, disable=quiet or not total
        ) as progress:
            yield progress.update

    return bar()


def report(args: argparse.Namespace, sweep: Sweep, folder: Path, missed: str | None) -> int:
    """Write CSV and picture, print the table and the answers; return the exit code.

    Args:
        missed: why times that are asked for are not in the table; None if all are.
    """
    from sparse_detr.benchmark.machine import REMEDY
    from sparse_detr.benchmark.sweep_report import answers, as_csv, as_markdown, draw, origin

    record = sweep.record
    write_text_atomically(folder / "sweep.csv", as_csv(record))
    draw(record, folder / "sweep.png")
    found = answers(record, within_ap=args.within_ap, under_ms=args.under_ms)
    if args.json:
        print(json.dumps({**record, "answers": found}))
        return BUSY if missed else 0
    print(as_markdown(record))
    print(origin(record))
    print("\n".join(found))
    if missed:
        untimed = any(not entry["milliseconds"] for entry in record["entries"])
        what = "some budgets have no times" if untimed else "all times are of an earlier call"
        print(f"{what}: {missed}; {REMEDY}; run the command again, the scores are kept")
    print(f"saved as {folder / TABLE.stem} with the ends json, csv and png")
    return BUSY if missed else 0
