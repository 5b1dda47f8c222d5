"""Evaluate one trained model as it is and in every precision of its inference form: what a precision costs in AP.

    python scripts/measure_precision.py --config-file output/quick/config.yaml --weights output/quick/model_final.pth

Data are named by the config, or by the options of `train_net.py --eval-only`; overrides may follow.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence

from sparse_detr.analysis.tables import markdown_table
from sparse_detr.cli.main import parse_arguments
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.load import load_config
from sparse_detr.config.own_data import OWN_DATA_KEYS, use_own_data
from sparse_detr.config.run import make_run
from sparse_detr.config.settings import set_output_dir
from sparse_detr.engine.training import evaluate_only
from sparse_detr.inference import PRECISIONS
from sparse_detr.train import add_arguments

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--weights", required=True, metavar="FILE")
    precisions = ["fp32", "bf16", "int8"]
    parser.add_argument("--precisions", nargs="+", default=precisions, choices=list(PRECISIONS))
    args = parse_arguments(parser, list(sys.argv[1:] if argv is None else argv))
    scores = {str(name): evaluate(args, name) for name in (None, *args.precisions)}
    print(table({"as it is" if name == "None" else name: found for name, found in scores.items()}))
    return 0


def evaluate(args: argparse.Namespace, precision: str | None) -> dict[str, float]:
    """Return the scores of the model in one precision; None for the model as it is."""
    cfg = load_config(args.config_file, args.opts)
    use_own_data(cfg, {key: getattr(args, key) for key in OWN_DATA_KEYS}, args.opts)
    kind_of(cfg).set("train.init_checkpoint", args.weights)
    with tempfile.TemporaryDirectory() as folder:
        set_output_dir(cfg, folder)
        return dict(evaluate_only(make_run(cfg), precision=precision)["bbox"])


def table(scores: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of scores, with the difference of the AP to that of the first row."""
    base = next(iter(scores.values()))["AP"]
    head = ["", *METRICS, "AP lost"]
    rows = [
        [name, *(f"{found[metric]:.2f}" for metric in METRICS), f"{base - found['AP']:.2f}"]
        for name, found in scores.items()
    ]
    return markdown_table(head, rows)


if __name__ == "__main__":
    sys.exit(main())
