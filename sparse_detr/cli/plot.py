"""Draw losses, AP, token recall and kept share of trainings side by side."""

import argparse
import json
from pathlib import Path

from sparse_detr.errors import UserError
from sparse_detr.files import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a training, with its metrics.json")
    parser.add_argument("--output", type=Path, metavar="FILE", help="picture to write, a .png")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME", help="draw this metric of the runs too; repeatable"
    )
    parser.add_argument(
        "--smooth",
        type=int,
        default=5,
        metavar="N",
        help="draw losses as the mean of N logged values (5; 1: as logged)",
    )
    parser.add_argument("--json", action="store_true", help="print the final values of what is drawn as JSON")


def run(args: argparse.Namespace) -> int:
    """Write the picture, or print the values."""
    check_options(args)
    from sparse_detr.visualization.curves import choose_panels, draw_curves, read_runs

    runs = read_runs(args.runs)
    panels = choose_panels(runs, args.metric)
    if args.output is not None:
        make_folder(args.output.parent)
        draw_curves(runs, panels, args.output, smooth=args.smooth)
    if args.json:
        print(json.dumps({run.name: run.final_values(panels) for run in runs}, indent=1))
    else:
        print(f"{len(panels)} metrics of {len(runs)} run{'s' * (len(runs) != 1)} are drawn in {args.output}")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    if args.output is None and not args.json:
        raise UserError("nothing to do: give --output FILE.png for a picture, or --json for the final values")
    if args.output is not None and args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output} is no .png; give a name that ends with .png")
    if args.smooth < 1 or args.smooth % 2 == 0:
        raise UserError(f"--smooth {args.smooth} cannot be used; give an odd number, 1 or more")
