"""Report on detections: scores and thresholds a class, curves, confusions, calibration, worst images, duplicates.

docs/report.md tells what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.cli._model import CONFIG_IS_CODE, add_overrides
from sparse_detr.cli._terminal import printable
from sparse_detr.errors import UserError
from sparse_detr.report import LIMIT

if TYPE_CHECKING:
    from sparse_detr.report.make import Source

MOST_WORST, MOST_DETECTIONS = 60, 1_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--run", dest="folder", metavar="DIR", help=f"output folder of a training or evaluation; {CONFIG_IS_CODE}"
    )
    parser.add_argument("--truth", metavar="FILE", help="COCO file of the true boxes, in place of --run")
    parser.add_argument("--results", metavar="FILE", help="COCO results file of the detections of its images")
    parser.add_argument("--images", metavar="DIR", help="folder that its file names start from, to draw worst images")
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help=f"detections of a class in an image that count (default: those of the run's scores, or {LIMIT})",
    )
    worst_help = f"images on the contact sheet (9; at most {MOST_WORST})"
    parser.add_argument("--worst", type=int, default=9, metavar="N", help=worst_help)
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder (default: `report` in the run, or output/report)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON and nothing else")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Write the report, and print the table of classes and what it means; return 0."""
    check_options(args)
    require_detectron2()
    from sparse_detr.report.make import make_report
    from sparse_detr.report.words import table

    output = args.output or Path(args.folder or "output", "report")
    report = make_report(source_of(args), output, worst=args.worst)
    for reason in report.skipped:
        print(f"not shown: {reason}", file=sys.stderr)
    if args.json:
        print(json.dumps(report.numbers))
        return 0
    files = f"tables, curves and pictures are in {output}: {', '.join(report.files)}"
    print(printable("\n".join([table(report.numbers), "", *report.numbers["sentences"], files])))
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option and the remedy.
    """
    files = [f"--{name}" for name in ("truth", "results", "images") if getattr(args, name) is not None]
    if args.folder is not None and files:
        raise UserError(f"--run and {files[0]} exclude each other; give --run, or --truth and --results")
    if args.folder is None and (args.truth is None or args.results is None):
        raise UserError("give --run with the output folder of a training, or both --truth and --results")
    if args.folder is None and args.opts:
        raise UserError(f"{args.opts[0]} is an override of a config, but only --run has one; remove it")
    limits = (("--max-detections", args.max_detections, MOST_DETECTIONS), ("--worst", args.worst, MOST_WORST))
    for option, value, most in limits:
        if value is not None and value < 1:
            raise UserError(f"{option} {value} leaves nothing to do; give 1 or more")
        if value is not None and value > most:
            raise UserError(f"{option} {value} is too many; give {most} or less")
    if args.images is not None and not os.path.isdir(args.images):
        raise UserError(f"--images {args.images} is no folder; name the one that the file names start from")


def source_of(args: argparse.Namespace) -> Source:
    """Return the files that the arguments name.

    Raises:
        UserError: the run has no config, no evaluation data or no detections.
    """
    from dataclasses import replace

    from sparse_detr.report.make import Source, source_of_run

    if args.folder is None:
        return Source(args.truth, args.results, args.images, args.max_detections or LIMIT)
    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr.config import load_config
    from sparse_detr.config.own_data import use_own_data
    from sparse_detr.config.run import make_run

    config = os.path.join(args.folder, "config.yaml")
    if not os.path.isfile(config):
        raise UserError(f"there is no {config}; name the output folder of a training, or give --truth and --results")
    cfg = load_config(config, args.opts)
    use_own_data(cfg, {}, args.opts)
    source = source_of_run(make_run(cfg), args.folder)
    return source if args.max_detections is None else replace(source, limit=args.max_detections)
