"""Report what is wrong with a data set in COCO format before training on it."""

import argparse
import sys
from typing import Any

from sparse_detr.files import write_text_atomically


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("--json", required=True, metavar="FILE", help="COCO annotation file")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder that the file names in it start from")
    parser.add_argument("--validation", action="store_true", help="the data are for evaluation, not for training")
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help="config of the model: queries, detections, value range; a config is code: load only configs you trust",
    )
    parser.add_argument("--num-queries", type=int, help="queries of the model (default: those of the config, or 300)")
    parser.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of black and white of gray images of more than 8 bits (default: as in training)",
    )
    parser.add_argument(
        "--boxes-from-masks", action="store_true", help="give an annotation without a box the box around its mask"
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="training stops when more than this share of the images cannot be used (default: %(default)s)",
    )
    parser.add_argument("--no-image-decode", action="store_true", help="only check that the images exist")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings too")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON as well")


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 if training would stop, or with `--strict` at any finding, else 0."""
    from sparse_detr.data.check import check_data

    given = _settings(args.config_file) if args.config_file else {"num_queries": 300}
    if args.num_queries is not None:
        given["num_queries"] = args.num_queries
    if args.value_range is not None:
        given["value_range"] = args.value_range
    report = check_data(
        args.json,
        args.images,
        **given,
        for_validation=args.validation,
        boxes_from_masks=args.boxes_from_masks,
        decode_images=not args.no_image_decode,
        max_bad_share=args.max_bad_share,
    )
    print(_printable(str(report)))
    if args.report:
        write_text_atomically(args.report, report.to_json() + "\n")
    return int(report.stops_training or (args.strict and bool(report.findings)))


def _settings(config_file: str) -> dict[str, Any]:
    """Return what a config says about the boxes and pixel values of its data."""
    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr.config import load_config
    from sparse_detr.config.kinds import kind_of
    from sparse_detr.config.limits import limits_of

    cfg = load_config(config_file)
    limits = limits_of(cfg)
    return {
        "num_queries": limits.num_queries,
        "num_detections": limits.num_detections,
        "value_range": kind_of(cfg).get("dataloader.train.mapper.value_range"),
    }


def _printable(text: str) -> str:
    """Return the text with escapes for characters that the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
