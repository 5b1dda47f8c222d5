"""Repeat a study of the Sparse DETR paper on your data, and say whether the result agrees with the paper."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.studies import STUDIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the studies, each with its options."""
    require_detectron2()
    studies = parser.add_subparsers(dest="study", metavar="NAME", required=True)
    for name, path in STUDIES.items():
        module = import_module(path)
        study = studies.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(study)
        study.add_argument(
            "--output",
            type=Path,
            default=Path("output/studies"),
            metavar="DIR",
            help="folder of the numbers, table, picture and trainings; a stopped study goes on in it (output/studies)",
        )


def run(args: argparse.Namespace) -> int:
    """Run the study; return 0 whether or not it agrees with the paper."""
    from sparse_detr.studies.driver import run_study

    run_study(import_module(STUDIES[args.study]).make(args), args.output)
    return 0
