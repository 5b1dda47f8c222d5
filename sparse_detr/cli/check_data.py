"""Examine own data before training on them: faults, leaks, sizes, and what to change in the config.

Exit status: 0 if training would run, 1 if it would stop (with `--strict` also at a warning), 2 if the check itself
cannot run. `--json FILE` has been the annotation file since the first version, so the report as JSON has its own
option: `--report FILE`, or `--report -` for standard output, which then holds nothing else.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.cli._model import CONFIG_IS_CODE, add_overrides
from sparse_detr.cli._terminal import printable
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

if TYPE_CHECKING:
    from sparse_detr.data.check import Checked
    from sparse_detr.data.doctor import Diagnosis, Source
    from sparse_detr.data.plan import Plan

PRESET = "dataloader.train.mapper.augmentations.preset"
STANDARD_OUTPUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options; those of the data are named as in `train`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "exit status: 0 training would run, 1 it would stop or --strict and a warning, 2 cannot check"
    data = parser.add_argument_group("data")
    data.add_argument("--train", metavar="PATH", help="folder or file of COCO, YOLO, Pascal VOC or CSV")
    data.add_argument(
        "--val", metavar="PATH", help="the same for validation (default: its part, or a share of --train)"
    )
    data.add_argument(
        "--val-share", type=float, default=0.2, metavar="SHARE", help="as in train (default: %(default)s)"
    )
    data.add_argument("--split-seed", type=int, default=0, help="as in train (default: %(default)s)")
    data.add_argument("--json", "--train-json", metavar="FILE", help="COCO annotation file")
    data.add_argument("--images", "--train-images", metavar="DIR", help="folder that the file names in it start from")
    data.add_argument("--val-json", metavar="FILE", help="COCO annotation file for validation")
    data.add_argument("--val-images", metavar="DIR")
    data.add_argument(
        "--validation", action="store_true", help="the data of --json are for evaluation, not for training"
    )
    data.add_argument(
        "--boxes-from-masks", action="store_true", help="give an annotation without a box the box around its mask"
    )
    parser.add_argument(
        "--config-file",
        metavar="FILE",
        help=f"config of the training: sizes, tokens, queries, limits, value range; {CONFIG_IS_CODE}",
    )
    add_overrides(parser)
    parser.add_argument("--num-queries", type=int, help="queries of the model (default: those of the config, or 300)")
    parser.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of black and white of gray images of more than 8 bits (default: as in training)",
    )
    parser.add_argument(
        "--min-pixels",
        type=float,
        default=8.0,
        help="an object is small if the root of its area is below this at the training size (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="training stops when more than this share of the images cannot be used (default: %(default)s)",
    )
    parser.add_argument("--no-image-decode", action="store_true", help="only check that the images exist")
    parser.add_argument("--strict", action="store_true", help="exit with 1 on warnings too")
    parser.add_argument(
        "--report", metavar="FILE", help="write the report as JSON as well; - prints it and nothing else"
    )
    parser.add_argument(
        "--contact-sheet",
        type=Path,
        metavar="FILE",
        help="write a picture (.png) of samples as the training sees them, after the config's augmentation",
    )
    parser.add_argument("--samples", type=int, default=12, help="pictures on it (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 if training would stop, or with `--strict` at a warning, else 0."""
    from sparse_detr.data.doctor import examine

    train, val, decisions = _data(args)
    cfg = _config(args) if args.config_file else None
    diagnosis, checked = examine(
        train,
        val,
        _plan(args, cfg),
        least=args.min_pixels,
        decode_images=not args.no_image_decode,
        max_bad_share=args.max_bad_share,
        for_validation=args.validation,
    )
    if args.contact_sheet:
        _write_contact_sheet(args, cfg, checked)
    if args.report == STANDARD_OUTPUT:
        print(_json(diagnosis, cfg, decisions))
    else:
        print(printable(_text(diagnosis, cfg, decisions, val)))
        if args.report:
            write_text_atomically(args.report, _json(diagnosis, cfg, decisions) + "\n")
    return int(diagnosis.stops_training or (args.strict and not diagnosis.is_sound))


def _data(args: argparse.Namespace) -> "tuple[Source, Source | None, list[str]]":
    """Return the data to examine, and how folders were read."""
    if args.train:
        named = [
            f"--{key.replace('_', '-')}" for key in ("json", "images", "val_json", "val_images") if vars(args)[key]
        ]
        if named or args.validation:
            raise UserError(f"--train does not go with {' and '.join(named) or '--validation'}; give one or the other")
        return _of_folders(args)
    if args.val:
        raise UserError("--val needs --train, which names the classes; add it, or give --json and --images")
    if not args.json or not args.images:
        raise UserError("no data are named; give --train PATH, or --json FILE and --images DIR")
    if bool(args.val_json) != bool(args.val_images):
        raise UserError("--val-json and --val-images go together; give both or none")
    if args.val_json and args.validation:
        raise UserError("--validation says that --json is for evaluation; leave it out, or leave out --val-json")
    val = _of_json(args.val_json, args.val_images, args.boxes_from_masks) if args.val_json else None
    return _of_json(args.json, args.images, args.boxes_from_masks), val, []


def _of_json(path: str, images: str, boxes_from_masks: bool) -> "Source":
    from sparse_detr.data.annotations import read_coco_file
    from sparse_detr.data.doctor import Source

    return Source(read_coco_file(path, boxes_from_masks=boxes_from_masks), Path(images))


def _of_folders(args: argparse.Namespace) -> "tuple[Source, Source | None, list[str]]":
    from sparse_detr.data.annotations import coco_file_of
    from sparse_detr.data.doctor import Source
    from sparse_detr.data.formats import Part, read_own_parts

    def source(part: Part) -> Source:
        coco = coco_file_of(part.source, part.to_coco(), boxes_from_masks=args.boxes_from_masks or part.needs_masks)
        return Source(coco, part.images, part.findings)

    own = read_own_parts(args.train, args.val, share=args.val_share, seed=args.split_seed)
    return source(own.train), source(own.val) if own.val else None, own.decisions


def _config(args: argparse.Namespace) -> Any:
    import sparse_detr.recipes  # noqa: F401 registers the names for yaml
    from sparse_detr.config import load_config

    return load_config(args.config_file, args.opts)


def _plan(args: argparse.Namespace, cfg: Any) -> "Plan":
    """Return the numbers of the config, or the defaults, with those of the command line."""
    from sparse_detr.data.plan import Plan

    if cfg is None:
        plan = Plan()
    else:
        from sparse_detr.config.data_plan import plan_of

        plan = plan_of(cfg)
    if args.num_queries is not None:
        plan = replace(plan, num_queries=args.num_queries)
    return plan if args.value_range is None else replace(plan, value_range=args.value_range)


def _text(diagnosis: "Diagnosis", cfg: Any, decisions: list[str], val: "Source | None") -> str:
    """Return the report for people."""
    parts = list(decisions)
    if diagnosis.val and val:
        parts += ["TRAINING DATA", str(diagnosis.train), f"VALIDATION DATA: {val.coco.path}", str(diagnosis.val)]
    else:
        parts.append(str(diagnosis.train))
    changes = _changes(diagnosis, cfg)
    if changes:
        lines = [f"  {change['override'] or change['value']}   # {change['reason']}" for change in changes]
        parts.append("\n".join(["what to change in the config:", *lines]))
        if pasted := " ".join(change["override"] for change in changes if change["override"]):
            parts.append(f"to paste: {pasted}")
    if cfg is None:
        parts.append("name a config with --config-file to compare the data with its sizes, tokens and queries")
    if diagnosis.preset:
        override = _preset_override(diagnosis, cfg)
        parts.append(f"{diagnosis.preset}" + (f": {override}" if override else ""))
    return "\n\n".join(parts)


def _changes(diagnosis: "Diagnosis", cfg: Any) -> list[dict[str, Any]]:
    """Return the changes with their overrides in the style of the config; without a config there are none."""
    if cfg is None:
        return []
    from sparse_detr.config.data_plan import override_of

    return [
        {"key": change.key, "value": change.value, "reason": change.reason, "override": override_of(cfg, change)}
        for change in diagnosis.changes
    ]


def _preset_override(diagnosis: "Diagnosis", cfg: Any) -> str | None:
    """Return the override that sets the proposed preset; None without a config or a preset."""
    if cfg is None or diagnosis.preset is None:
        return None
    from sparse_detr.config.data_plan import override_of
    from sparse_detr.data.plan import Change

    return override_of(cfg, Change(PRESET, diagnosis.preset.name, diagnosis.preset.reason))


def _json(diagnosis: "Diagnosis", cfg: Any, decisions: list[str]) -> str:
    content = json.loads(diagnosis.to_json())
    if content["preset"]:
        content["preset"]["override"] = _preset_override(diagnosis, cfg)
    return json.dumps({**content, "changes": _changes(diagnosis, cfg), "read": decisions}, indent=2)


def _write_contact_sheet(args: argparse.Namespace, cfg: Any, checked: "Checked") -> None:
    """Draw samples of the training data after the config's augmentation."""
    from sparse_detr.config.model import build_train_mapper
    from sparse_detr.data.mapper import DetrDatasetMapper
    from sparse_detr.data.samples import augmented_samples
    from sparse_detr.visualization.contact_sheet import Sample, draw_contact_sheet
    from sparse_detr.visualization.pictures import write_picture

    if args.samples < 1:
        raise UserError(f"--samples is {args.samples}; give 1 or more")
    mapper = build_train_mapper(cfg) if cfg is not None else DetrDatasetMapper(is_train=True, augmentations=[])
    samples = [
        Sample(image, boxes, labels, name)
        for image, boxes, labels, name in augmented_samples(checked, mapper, args.samples, seed=args.split_seed)
    ]
    if not samples:
        raise UserError(f"{checked.coco.path} has no image that can be read, so no contact sheet is drawn")
    how = f"after the augmentation of {args.config_file}" if cfg is not None else "as in the files: no config is named"
    sheet = draw_contact_sheet(
        samples, list(checked.coco.class_names.values()), title=f"Samples of {checked.coco.path.name}", remark=how
    )
    write_picture(args.contact_sheet, sheet)
