"""Draw detections, kept tokens, token scores and decoder attention on images."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.checks import check_score
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides, weights_text
from sparse_detr.cli._optimize import add_optimize
from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import IMAGE_SUFFIXES, make_folder

if TYPE_CHECKING:
    from sparse_detr import Predictor

DEVICE_KEYS = ("train.device", "MODEL.DEVICE")
MAX_REASONS = 10  # skipped images that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser)
    parser.add_argument("--input", required=True, nargs="+", metavar="PATH", help="images, folders or glob patterns")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for pictures and detections")
    parser.add_argument("--score-threshold", type=float, default=0.3, metavar="S", help="lowest score shown (0.3)")
    add_budget(parser)
    add_optimize(parser)
    parser.add_argument("--max-images", type=int, metavar="N", help="stop after N images")
    parser.add_argument("--train-json", metavar="FILE", help="COCO file that the model was trained on: its classes")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Draw every image that can be read; return 0, or 1 if none can."""
    check_options(args)
    require_detectron2()
    files = find_images(args.input)[: args.max_images]
    make_folder(args.output)
    predictor = load_predictor(args)
    if predictor.is_dense:
        print("this model has a dense encoder, which keeps every token: there are no pictures of tokens and scores")
    weights = weights_text(args.weights, averaged=args.ema)
    skipped = draw_images(predictor, files, args.output, score_threshold=args.score_threshold, weights=weights)
    drawn = len(files) - len(skipped)
    print(f"{drawn} of {len(files)} images drawn, {len(skipped)} skipped")
    for reason in skipped[:MAX_REASONS]:
        print(f"  skipped {reason}")
    if len(skipped) > MAX_REASONS:
        print(f"  ... and {len(skipped) - MAX_REASONS} more")
    print(f"pictures (*_overview.png shows all of an image) and detections (*.json) are in {args.output}")
    return 0 if drawn else 1


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    if not args.weights.strip():
        raise UserError("--weights is empty; give the checkpoint of a training or of `sparse-detr convert`")
    check_score("--score-threshold", args.score_threshold)
    args.budget = checked_budget("--budget", args.budget)
    if args.max_images is not None and args.max_images < 1:
        raise UserError(f"--max-images {args.max_images} leaves nothing to draw; give 1 or more")


def find_images(inputs: Sequence[str], *, option: str = "--input") -> list[str]:
    """Return the images that the command line names, as files, folders or patterns.

    Args:
        inputs: what it names.
        option: the name of the option, for the message.

    Raises:
        UserError: one of the inputs gives no image.
    """
    found: dict[str, None] = {}
    for given in inputs:
        if os.path.isdir(given):
            paths = [str(path) for path in sorted(Path(given).iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
        else:
            paths = [given] if os.path.isfile(given) else sorted(filter(os.path.isfile, glob.glob(given)))
        if not paths:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(
                f"{option} {given}: no image found; give an image, a folder of images ({kinds}) or a pattern"
            )
        found.update(dict.fromkeys(paths))
    return list(found)


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Load the detector that the arguments name."""
    from sparse_detr import Predictor
    from sparse_detr.config import load_config
    from sparse_detr.config.settings import check_device_of
    from sparse_detr.data.annotations import read_coco_file

    cfg = load_config(args.config_file, args.opts)
    if any(key in word for word in args.opts for key in DEVICE_KEYS):
        check_device_of(cfg)
    names = list(read_coco_file(args.train_json).class_names.values()) if args.train_json else None
    predictor = Predictor(
        cfg, args.weights, ema=args.ema, class_names=names, optimize=args.optimize, budget=args.budget
    )
    if not predictor.class_names:
        print("the class names are unknown, so numbers are shown; --train-json FILE gives the names")
    return predictor


def draw_images(
    predictor: Predictor, files: Sequence[str], output: Path, *, score_threshold: float, weights: str
) -> list[str]:
    """Write the pictures of every file; return one reason for each file that could not be read."""
    from tqdm import tqdm

    from sparse_detr.visualization import list_detections
    from sparse_detr.visualization.pictures import write_files
    from sparse_detr.visualization.token_maps import watch_token_maps

    origin = {"weights": weights, "class_names": predictor.class_names, "score_threshold": score_threshold}
    skipped: list[str] = []
    for file_name, stem in zip(tqdm(files, desc="drawing", unit="image"), unique_stems(files), strict=True):
        try:
            image = predictor.read(file_name)
        except ImageError as error:
            skipped.append(str(error))
            continue
        with watch_token_maps(predictor.model) as maps_of:
            found = predictor.outputs(image, score_threshold=score_threshold)
        write_files(
            output / stem,
            image,
            list_detections(found.instances[0], predictor.class_names),
            maps_of(found.output),
            caption=f"score at least {score_threshold:g}",
            origin={"file_name": file_name, **origin},
        )
    return skipped


def unique_stems(files: Sequence[str]) -> list[str]:
    """Return a stem for the results of every file; files of the same name get a number."""
    stems: list[str] = []
    for file_name in files:
        stem, copy = Path(file_name).stem, 2
        while stem in stems:
            stem, copy = f"{Path(file_name).stem}-{copy}", copy + 1
        stems.append(stem)
    return stems
