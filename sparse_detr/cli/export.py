"""Write a detector as a file that runs without this package: ONNX, .pt2 (torch.export) or TorchScript."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr import Predictor

NUM_IMAGES = 5  # of a folder, on which file and model are compared
SAMPLE_VARIABLE, SAMPLE = "SPARSE_DETR_SAMPLE", "datasets/sample"
FORMATS = ("onnx", "pt2", "torchscript")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="FILE", help="file to write: NAME.onnx, .pt2 or .torchscript"
    )
    parser.add_argument("--format", choices=FORMATS, help="format of the file (default: that of its suffix)")
    parser.add_argument(
        "--images", nargs="+", metavar="PATH", help="images or folders to compare on (default: the sample data's)"
    )
    add_budget(parser)
    parser.add_argument(
        "--fixed-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="make height and width constants: images are padded to this size",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="version of ONNX's operators (default: 18)")
    parser.add_argument("--plugin", choices=["tensorrt"], help="write deformable attention as this runtime's plugin")
    parser.add_argument(
        "--keep-op", action="store_true", help="keep the fast op in a .pt2 file, which then needs this package to run"
    )
    parser.add_argument(
        "--optimize", action="store_true", help="write the model in its inference form in fp32, which does less work"
    )
    parser.add_argument("--train-json", metavar="FILE", help="COCO file that the model was trained on: its classes")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Export the model and say how well the file agrees with it; return 0."""
    check_options(args)
    require_detectron2()
    from sparse_detr.export import export_model
    from sparse_detr.export.formats import format_of
    from sparse_detr.export.write import check_choices

    file_format = format_of(args.output, args.format)
    predictor = load_predictor(args)
    budget = predictor.budget
    metadata = describe(predictor, args)
    choices = {"opset": args.opset, "keep_op": args.keep_op, "plugin": args.plugin}
    check_choices(file_format, metadata, **choices)
    images = find_images(args.images)
    parity = export_model(
        predictor.model,
        args.output,
        metadata=metadata,
        inputs=[predictor.preprocess(image) for image in images],
        file_format=args.format,
        budget=budget,
        optimize=args.optimize,
        **choices,
    )
    print(parity)
    print(f"wrote {args.output} ({args.output.stat().st_size / 2**20:.1f} MiB)")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used, before anything is loaded.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    if args.output.exists() and not args.force:
        raise UserError(f"{args.output} exists; give another name, or --force to overwrite it")
    if not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no folder {args.output.parent}; make it first")
    args.budget = checked_budget("--budget", args.budget)
    if args.fixed_size is not None and min(args.fixed_size) < 1:
        raise UserError(
            f"--fixed-size {' '.join(map(str, args.fixed_size))} is no size; give height and width in pixels"
        )


def find_images(given: list[str] | None) -> list[str]:
    """Return the images to compare on: those that are named, or the first of the sample data.

    Raises:
        UserError: there is none.
    """
    from sparse_detr.cli.demo import find_images as find

    if given is not None:
        return find(given)[:NUM_IMAGES] if any(map(os.path.isdir, given)) else find(given)
    folder = os.path.join(os.environ.get(SAMPLE_VARIABLE) or SAMPLE, "val")
    if not os.path.isdir(folder):
        raise UserError(
            f"file and model are compared on images, but there is no sample data ({folder}); give --images PATH, best "
            "some of your own"
        )
    return find([folder])[:NUM_IMAGES]


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Load the detector that the arguments name, on the CPU."""
    from sparse_detr import Predictor
    from sparse_detr.config import load_config
    from sparse_detr.data.annotations import read_coco_file

    cfg = load_config(args.config_file, args.opts)
    names = list(read_coco_file(args.train_json).class_names.values()) if args.train_json else None
    predictor = Predictor(cfg, args.weights, device="cpu", ema=args.ema, class_names=names, budget=args.budget)
    if not predictor.class_names:
        print("the class names are unknown, so the file has none; --train-json FILE gives the names")
    return predictor


def describe(predictor: Predictor, args: argparse.Namespace) -> Any:
    """Return the metadata of the file."""
    from sparse_detr import __version__
    from sparse_detr.config.num_classes import model_classes
    from sparse_detr.export import Metadata
    from sparse_detr.export.metadata import resize_of

    mapper, model = predictor._mapper, predictor.model
    short_size, max_size = resize_of(mapper)
    if short_size is None:
        print("the config does more than a resize by the short side, so the file does not say how to preprocess images")
    value_range = getattr(mapper, "value_range", None)
    return Metadata(
        config=os.path.basename(args.config_file),
        package_version=__version__,
        class_names=predictor.class_names,
        num_classes=model_classes(model),
        channel_order=mapper.image_format,
        short_size=short_size,
        max_size=max_size,
        value_range=None if value_range is None else [float(value) for value in value_range],
        keep_ratio=_keep_ratio(predictor),
        budget=None if predictor.budget is None else str(predictor.budget),
        fixed_size=args.fixed_size,
        num_detections=getattr(getattr(model, "postprocess", None), "num_detections", None),
    )


def _keep_ratio(predictor: Predictor) -> float | None:
    """Return the share of the tokens that is a constant of the file; None for models without one."""
    from sparse_detr.modeling.effort import effort_of_call
    from sparse_detr.modeling.selection import budget_of_call

    if predictor.is_dense or predictor._selects_levels:
        return None
    tokens = effort_of_call(predictor.budget).tokens
    return float(budget_of_call(tokens, predictor.model.selector.budget).keep_ratio)  # type: ignore[union-attr]
