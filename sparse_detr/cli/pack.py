"""Put a detector into a folder that `Predictor(folder)` and `predict` load on another machine.

The folder has the config, the weights, the class names, the options of a call and a card (README.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.checks import check_score
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides
from sparse_detr.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to write")
    parser.add_argument("--score-threshold", type=float, default=0.0, metavar="S", help="default of its calls (0)")
    add_budget(parser)
    parser.add_argument("--notes", metavar="FILE", help="text for the card: data, scores, limits; Markdown")
    parser.add_argument("--train-json", metavar="FILE", help="COCO file that the model was trained on: its classes")
    parser.add_argument("--force", action="store_true", help="replace an earlier folder")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Write the folder; return 0."""
    check_score("--score-threshold", args.score_threshold)
    args.budget = checked_budget("--budget", args.budget)
    if args.output.exists() and not args.force:
        raise UserError(f"{args.output} exists; give another name, or --force to replace it")
    notes = _text(args.notes) if args.notes else ""
    require_detectron2()
    from sparse_detr import Predictor
    from sparse_detr.config import load_config
    from sparse_detr.data.annotations import read_coco_file

    names = list(read_coco_file(args.train_json).class_names.values()) if args.train_json else None
    predictor = Predictor(
        load_config(args.config_file, args.opts),
        args.weights,
        device="cpu",
        ema=args.ema,
        class_names=names,
        budget=args.budget,
        score_threshold=args.score_threshold,
    )
    predictor.save(args.output, notes=notes)
    if not predictor.class_names:
        print("the class names are unknown, so the folder has none; --train-json FILE gives the names")
    size = sum(path.stat().st_size for path in args.output.iterdir()) / 2**20
    print(f"wrote {args.output} ({size:.1f} MiB); load it with Predictor({str(args.output)!r})")
    return 0


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--notes {path} cannot be read ({error}); give a text file in UTF-8") from error
