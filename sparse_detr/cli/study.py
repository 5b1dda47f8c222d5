"""Repeat a study of the Sparse DETR paper on your data, and say whether the result agrees with the paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.studies import SUMMARIES, module_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the studies; the options of the chosen one are declared when it is parsed."""
    studies = parser.add_subparsers(dest="study", metavar="NAME", required=True, parser_class=StudyParser)
    for name, summary in SUMMARIES.items():
        studies.add_parser(name, study=name, help=summary, description=summary)


class StudyParser(argparse.ArgumentParser):
    """The options of a study, whose module is imported only if the study is chosen.

    Args:
        study: its name.
    """

    def __init__(self, *args: Any, study: str, **options: Any) -> None:
        super().__init__(*args, **options)
        self.study: str | None = study

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Parse as every parser, with the options of the study."""
        self.declare()
        return super().parse_known_args(*args, **options)

    def declare(self) -> None:
        """Declare the options of the study, once."""
        if self.study is None:
            return
        require_detectron2()
        module_of(self.study).add_arguments(self)
        self.add_argument(
            "--output",
            type=Path,
            default=Path("output/studies"),
            metavar="DIR",
            help="folder of the numbers, table, picture and trainings; a stopped study goes on in it (output/studies)",
        )
        self.study = None


def run(args: argparse.Namespace) -> int:
    """Run the study; return 0 whether or not it agrees with the paper."""
    from sparse_detr.studies.driver import run_study

    run_study(module_of(args.study).make(args), args.output)
    return 0
