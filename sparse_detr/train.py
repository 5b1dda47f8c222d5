"""Train or evaluate a detector: `python -m sparse_detr.train`, `train_net.py` and `sparse-detr train`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._optimize import add_optimize
from sparse_detr.cli.main import parse_arguments
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr.config.kinds import Config
    from sparse_detr.config.run import Run

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  train on a lazy config:    --config-file projects/SparseDETR/configs/X.py train.max_iter=1000
  train on a yaml config:    --config-file projects/SparseDETR/configs/X.yaml SOLVER.MAX_ITER 1000
  on your own data:          --config-file X --train DIR          (COCO, YOLO, Pascal VOC or CSV)
  on your own COCO files:    --config-file X --train-json A --train-images DIR --val-json B --val-images DIR
  go on after a stop:        --config-file output/config.yaml --resume
  evaluate:                  --config-file X --eval-only train.init_checkpoint=model_final.pth
a config is code: load only configs you trust
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of training; options of Detectron2's tools have the same names here."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="lazy .py, yacs .yaml or config.yaml of a run"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    add_budget(parser)
    add_optimize(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last whole checkpoint in the output folder, with the settings of this command",
    )
    parser.add_argument(
        "--ema", action="store_true", help="take the averaged weights of the checkpoint that the config names"
    )
    parser.add_argument("--output-dir", metavar="DIR", help="output folder, in place of the config's")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (on the CPU without GPUs)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="address of the first machine, as tcp://host:port")
    data = parser.add_argument_group("own data (the number of classes comes from the training data)")
    data.add_argument("--train", metavar="PATH", help="folder or file of COCO, YOLO, Pascal VOC or CSV")
    data.add_argument(
        "--val", metavar="PATH", help="the same for validation (default: its part, or a share of --train)"
    )
    data.add_argument(
        "--val-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="of the images of --train for validation, where none are named; 0 for none (default: %(default)s)",
    )
    data.add_argument("--split-seed", type=int, default=0, help="of the choice of these images (default: %(default)s)")
    data.add_argument("--train-json", metavar="FILE", help="COCO file, with its images in --train-images")
    data.add_argument("--train-images", metavar="DIR")
    data.add_argument("--val-json", metavar="FILE")
    data.add_argument("--val-images", metavar="DIR")
    data.add_argument(
        "--boxes-from-masks", action="store_true", help="give an annotation without a box the box around its mask"
    )
    parser.add_argument("opts", nargs="*", metavar="override", help="path.key=value (lazy) or PATH.KEY VALUE (yacs)")


def run(args: argparse.Namespace) -> int:
    """Start the processes and train or evaluate in them; return 0 if all went well."""
    if args.optimize and not args.eval_only:
        raise UserError("--optimize is for a finished model, which does not learn; add --eval-only, or leave it out")
    if args.budget is not None and not args.eval_only:
        raise UserError(
            f"--budget {args.budget} is for a finished model; add --eval-only, or train with another keep ratio: "
            "model.selector.budget.keep_ratio=0.3 (lazy), MODEL.DETR.KEEP_RATIO 0.3 (yaml)"
        )
    args.budget = checked_budget("--budget", args.budget)
    require_detectron2()
    from sparse_detr.engine.launch import start_processes

    if args.num_gpus * args.num_machines > 1:
        _prepare(args)  # a wrong argument should fail before processes are started
    start_processes(
        run_in_process,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    return 0


def _prepare(args: argparse.Namespace):
    """Load the config and apply overrides and own data."""
    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr.config.load import load_config
    from sparse_detr.config.own_data import use_own_data
    from sparse_detr.config.settings import check_device_of, expand_output_dir, set_output_dir

    cfg = load_config(args.config_file, args.opts)
    check_device_of(cfg)
    if args.output_dir:
        set_output_dir(cfg, args.output_dir)
    expand_output_dir(cfg)
    use_own_data(cfg, _own_data(cfg, args), args.opts)
    return cfg


def _own_data(cfg: "Config", args: argparse.Namespace) -> dict[str, Any]:
    """Return the own data that the command line names, as COCO files."""
    from sparse_detr.config.own_data import BOXES_FROM_MASKS, OWN_DATA_KEYS, paths_of_folders

    named = {key: getattr(args, key) for key in (*OWN_DATA_KEYS, BOXES_FROM_MASKS)}
    if not (args.train or args.val):
        return named
    options = [f"--{key.replace('_', '-')}" for key in OWN_DATA_KEYS if named[key]]
    if options:
        raise UserError(f"--train and --val name the same data as {' and '.join(options)}; give one or the other")
    found = paths_of_folders(cfg, args.train, args.val, share=args.val_share, seed=args.split_seed)
    return {**named, **found}


def run_in_process(args: argparse.Namespace) -> None:
    """Train or evaluate in one of the processes; all of them call this.

    Exits with 2 after a `UserError` and with 3 after a non-finite number.
    """
    from sparse_detr.engine.nonfinite import NonFiniteError

    try:
        _train_or_evaluate(args)
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 3)


def _train_or_evaluate(args: argparse.Namespace) -> None:
    from sparse_detr.config.run import make_run
    from sparse_detr.config.settings import share_seed
    from sparse_detr.engine.held_log import hold_log
    from sparse_detr.engine.output import disk_errors_for_users, hold_folder

    with hold_log("sparse_detr") as held:
        cfg = _prepare(args)
        share_seed(cfg)
        run_description = make_run(cfg)
    folder = run_description.settings.output_dir
    with hold_folder(folder, alone=not args.eval_only), disk_errors_for_users(folder):
        _work(args, cfg, run_description, held)


def _work(args: argparse.Namespace, cfg: "Config", run_description: "Run", held: Sequence[logging.LogRecord]) -> None:
    from sparse_detr.engine.results import report_results
    from sparse_detr.engine.setup import set_up_process
    from sparse_detr.engine.training import evaluate_only, train
    from sparse_detr.report.after import report_after

    settings = run_description.settings
    set_up_process(cfg, settings, args)
    for record in held:  # logged before there was a log file
        logging.getLogger(record.name).handle(record)
    options = {"resume_last": args.resume, "ema": args.ema}
    if args.eval_only:
        random_weights = _asks_for_random_weights(args.opts)
        scores = evaluate_only(
            run_description, **options, random_weights=random_weights, precision=args.optimize, budget=args.budget
        )
    else:
        scores = train(run_description, **options)
    report_after(run_description, scores)
    report_results(scores, settings, trained=not args.eval_only)


def _asks_for_random_weights(overrides: Sequence[str]) -> bool:
    """Return whether the command line itself, not the config, sets the checkpoint to nothing."""
    text = [override.strip() for override in overrides]
    return "train.init_checkpoint=" in text or ("MODEL.WEIGHTS", "") in pairwise(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train_net.py` or `python -m sparse_detr.train`; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    try:
        return run(parse_arguments(parser, list(sys.argv[1:] if argv is None else argv)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
