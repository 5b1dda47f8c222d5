"""Write own data in COCO, YOLO, Pascal VOC or CSV as a COCO file."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sparse_detr.data.formats import Part

PARTS = ("train", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--input", required=True, metavar="PATH", help="folder or file of COCO, YOLO, Pascal VOC or CSV"
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="FILE",
        help="COCO file; with several parts, _train, _val and _test are added to its name",
    )
    parser.add_argument("--part", choices=PARTS, help="write this part only (default: all that there are)")
    parser.add_argument(
        "--split",
        type=float,
        metavar="SHARE",
        help="divide the training part: this share of its images, such as 0.2, becomes the part val",
    )
    parser.add_argument("--split-seed", type=int, default=0, help="of this choice of images (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the files and print what was read; return 0, or 1 if entries cannot be read."""
    from sparse_detr.data.findings import errors_first
    from sparse_detr.data.formats.prepare import coco_text

    if args.split is not None and args.part is not None:
        raise UserError("--split writes two parts and --part one; give one of the options")
    parts = _parts(args)
    paths = {name: _path(args.output, name if len(parts) > 1 else "") for name in parts}
    _refuse_to_replace(Path(args.input), paths.values())
    findings = [finding for part in parts.values() for finding in part.findings]
    for finding in errors_first(findings):
        print(f"{finding.severity}: {finding}", file=sys.stderr)
    if any(finding.is_error for finding in findings):
        print("nothing is written", file=sys.stderr)
        return 1
    for name, part in parts.items():
        write_text_atomically(paths[name], coco_text(part))
        content = part.content
        print(
            f"{paths[name]}: {len(content['images'])} images, {len(content['annotations'])} boxes, "
            f"{len(content['categories'])} classes; its file names start from {part.images}"
        )
    return 0


def _refuse_to_replace(source: Path, outputs: "Iterable[Path]") -> None:
    """Raise `UserError` if an output is a file of the data that are read."""
    source = source.expanduser().resolve()
    for output in outputs:
        if output.exists() and source in (real := output.resolve(), *real.parents):
            raise UserError(f"{output} is a file of {source}, which is read; choose another --output")


def _path(output: Path, name: str) -> Path:
    return output.with_name(f"{output.stem}_{name}{output.suffix}") if name else output


def _parts(args: argparse.Namespace) -> "dict[str, Part]":
    """Return the parts to write; a single one has the name of its part or "all"."""
    from sparse_detr.data.formats import find_data_set, read_own_parts
    from sparse_detr.data.formats.prepare import with_same_classes

    found = find_data_set(args.input)
    print(f"{args.input} is {found.form}", file=sys.stderr)
    if args.split is not None:
        if "val" in found.parts:
            raise UserError(f"{args.input} has a part for validation; leave out --split {args.split}")
        own = read_own_parts(args.input, share=args.split, seed=args.split_seed)
        if own.val is None:
            raise UserError(f"--split {args.split} leaves no image for validation; give a share such as 0.2")
        return {"train": own.train, "val": own.val}
    if args.part is not None and args.part not in found.parts:
        raise UserError(f"{args.input} has no part {args.part}; it has {', '.join(found.parts)}")
    if args.part is not None and (only := found.parts[args.part]()).fixed_classes:
        return {args.part: only}
    names = sorted(found.parts, key=[*PARTS, "all"].index)
    parts, _ = with_same_classes([found.parts[name]() for name in names])
    return {name: part for name, part in zip(names, parts) if args.part in (None, name)}
