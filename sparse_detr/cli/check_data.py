"""Report what is wrong with a data set in COCO format before training on it."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data are and how strict to be."""
    parser.add_argument("--json", required=True, metavar="FILE", help="COCO annotation file")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder that its file names refer to")
    parser.add_argument("--num-queries", type=int, default=300, help="queries of the model (default: %(default)s)")
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="share of unusable images above which training stops (default: %(default)s)",
    )
    parser.add_argument("--no-image-decode", action="store_true", help="only look whether the images exist")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings too")
    parser.add_argument("--report", metavar="FILE", help="write the report as JSON as well")


def run(args: argparse.Namespace) -> int:
    """Print the report; 1 if training would stop, or with `--strict` if anything is odd, else 0."""
    from sparse_detr.data.check import check_data

    report = check_data(
        args.json,
        args.images,
        num_queries=args.num_queries,
        decode_images=not args.no_image_decode,
        max_bad_share=args.max_bad_share,
    )
    print(report)
    if args.report:
        Path(args.report).write_text(report.to_json() + "\n", encoding="utf-8")
    return int(report.stops_training or (args.strict and bool(report.findings)))
