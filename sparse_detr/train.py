"""Train or evaluate a detector: `python -m sparse_detr.train`, `train_net.py` and `sparse-detr train`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  train on a lazy config:    --config-file projects/SparseDETR/configs/X.py train.max_iter=1000
  train on a yaml config:    --config-file projects/SparseDETR/configs/X.yaml SOLVER.MAX_ITER 1000
  on your own COCO files:    --config-file X --train-json A --train-images DIR --val-json B --val-images DIR
  go on after a stop:        --config-file output/config.yaml --resume
  evaluate:                  --config-file X --eval-only train.init_checkpoint=model_final.pth
a config is code: load only configs you trust
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of training; those of Detectron2's tools have its names."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="lazy .py, yacs .yaml or config.yaml of a run"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    parser.add_argument("--output-dir", metavar="DIR", help="short for the config's output folder")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine (on the CPU without GPUs)")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0)
    parser.add_argument("--dist-url", default="auto", help="address of the first machine, as tcp://host:port")
    data = parser.add_argument_group("own data in COCO format (the number of classes is taken from the first file)")
    data.add_argument("--train-json", metavar="FILE")
    data.add_argument("--train-images", metavar="DIR")
    data.add_argument("--val-json", metavar="FILE")
    data.add_argument("--val-images", metavar="DIR")
    parser.add_argument("opts", nargs="*", metavar="override", help="path.key=value (lazy) or PATH.KEY VALUE (yacs)")


def run(args: argparse.Namespace) -> int:
    """Start the processes and train or evaluate in them; 0 if all went well."""
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
    """The config with overrides and own data applied."""
    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr.config.load import load_config
    from sparse_detr.config.own_data import OWN_DATA_KEYS, use_own_data
    from sparse_detr.config.settings import check_device

    cfg = load_config(args.config_file, args.opts)
    check_device(cfg)
    use_own_data(cfg, {key: getattr(args, key) for key in OWN_DATA_KEYS}, args.opts)
    return cfg


def run_in_process(args: argparse.Namespace) -> None:
    """Train or evaluate in one of the processes; all of them call it. Exits with 2 or 3 after a known error."""
    from sparse_detr.engine.nonfinite import NonFiniteError

    try:
        _train_or_evaluate(args)
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 3)


def _train_or_evaluate(args: argparse.Namespace) -> None:
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    from sparse_detr.config.run import make_run
    from sparse_detr.config.settings import set_output_dir, share_seed
    from sparse_detr.engine.report import report_results
    from sparse_detr.engine.train import evaluate_only, train

    cfg = _prepare(args)
    if args.output_dir:
        set_output_dir(cfg, args.output_dir)
    share_seed(cfg)
    default_setup(cfg, args)
    run_description = make_run(cfg)
    setup_logger(run_description.settings.output_dir, distributed_rank=comm.get_rank(), name="sparse_detr")
    work = evaluate_only if args.eval_only else train
    scores = work(run_description, resume_last=args.resume)
    report_results(scores, run_description.settings, trained=not args.eval_only)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of `train_net.py` and `python -m sparse_detr.train`."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_intermixed_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
