"""Convert a public checkpoint, or ImageNet backbone weights, to this project's names.

Reads files of the papers' authors, of detrex, of Hugging Face's transformers (also a folder with its config.json, and
safetensors) and of MMDetection 3; docs/checkpoints.md lists the models. Prints how many entries were renamed, left out
or unknown, which recipe, backbone and position embedding the file needs and, with `--config-file`, how it fits that
model.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_atomically

if TYPE_CHECKING:
    from torch import nn

    from sparse_detr.checkpoint import ConvertedCheckpoint, MatchReport

SOURCES = (
    "dab_deformable_detr",
    "lite_dino",
    "dino",
    "sparse_detr",
    "deformable_detr",
    "dab_detr",
    "anchor_detr",
    "pnp_detr",
    "detr",
    "conditional_detr",
    "imfa_dab_detr",
    "detrex_focus_detr",
    "detrex_dab_deformable_detr",
    "detrex_dino",
    "detrex_dab_detr",
    "detrex_anchor_detr",
    "detrex_pnp_detr",
    "detrex_detr",
    "detrex_conditional_detr",
    "transformers_deformable_detr",
    "transformers_conditional_detr",
    "transformers_detr",
    "mmdet_dino",
    "mmdet_deformable_detr",
    "mmdet_conditional_detr",
    "mmdet_detr",
    "torchvision_resnet",
    "swin",
    "dat",
    "scrl",
)
"""The names of `sparse_detr.checkpoint.layouts.LAYOUTS`, which loads PyTorch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("input", type=Path, help="public checkpoint, a folder of transformers, or backbone weights")
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument(
        "--source",
        default="auto",
        choices=["auto", *SOURCES],
        metavar="LAYOUT",
        help=f"how the file names its entries: {', '.join(SOURCES)} (default: auto, by the names)",
    )
    parser.add_argument(
        "--classes",
        type=int,
        choices=[91, 80],
        help="keep COCO's 91 ids, or take the rows of its 80 (default: as in the file)",
    )
    dilated = parser.add_mutually_exclusive_group()
    for option, value, words in (("--dilated", True, "is"), ("--not-dilated", False, "is not")):
        dilated.add_argument(
            option,
            dest="dilated",
            action="store_const",
            const=value,
            help=f"the last stage of the ResNet {words} dilated (DC5), for files that do not show it",
        )
    parser.add_argument("--ema", action="store_true", help="convert the averaged weights of the file")
    parser.add_argument(
        "--config-file",
        type=Path,
        help="check the result against this model; a config is code: load only configs you trust",
    )
    parser.add_argument(
        "--min-match",
        type=float,
        default=0.99,
        metavar="SHARE",
        help="fail if a smaller share of the file is known, or (with a config) fits its model (default: 0.99)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")


def run(args: argparse.Namespace) -> int:
    """Convert the file; return 0, or 1 without writing if too little of it is known or fits."""
    if args.output.exists() and not args.force:
        raise UserError(f"{args.output} exists; give another name, or --force to overwrite it")
    if not 0 <= args.min_match <= 1:
        raise UserError(f"--min-match {args.min_match:g} is no share; give a number from 0 to 1")
    from sparse_detr.checkpoint import convert_checkpoint, load_file
    from sparse_detr.checkpoint.convert import has_our_names
    from sparse_detr.checkpoint.unwrap import unwrap

    checkpoint = load_file(args.input)
    make_folder(args.output.parent)
    if args.ema and has_our_names(averaged := unwrap(checkpoint, averaged=True).weights):
        _save_weights(args.output, {"model": averaged})
        print(f"wrote the averaged weights alone, whose names are this project's: {args.output}")
        return 0
    converted = convert_checkpoint(
        checkpoint, source=args.source, num_classes=args.classes, ema=args.ema, dilated=args.dilated
    )
    print(converted)
    if not _is_close_enough(converted, args):
        return 1
    _write_converted(converted, args.output)
    print(f"wrote {args.output}")
    return 0


def _is_close_enough(converted: ConvertedCheckpoint, args: argparse.Namespace) -> bool:
    """Return whether enough of the file is known and, given a config, fits its model; print the reason if not."""
    if converted.known_share < args.min_match:
        print(
            f"only {converted.known_share:.1%} of the file is known (--min-match {args.min_match:.1%}); "
            "nothing is written; a smaller --min-match leaves the unknown entries out"
        )
        return False
    if args.config_file is None:
        if converted.unknown:
            print(
                f"unknown entries that are left out: {len(converted.unknown)}; the model may lack as many; "
                "give --config-file to see which, or --min-match 1 to refuse such a file"
            )
        return True
    report = _fit(_model(args.config_file), converted)
    print(f"against {args.config_file}: {report}")
    if report.skipped_classes:
        print("the numbers of classes differ: see --classes; fine-tuning skips the class rows and keeps the rest")
    if report.untied:
        print("the file has separate weights where the model shares one (see untied); nothing is written")
        return False
    whole_model = converted.description.recipe is not None
    share = report.model_share if whole_model else report.file_share
    if share < args.min_match:
        what = "of the model is filled" if whole_model else "of the backbone weights fit"
        print(f"only {share:.1%} {what} (--min-match {args.min_match:.1%}); nothing is written")
        return False
    return True


def _fit(model: nn.Module, converted: ConvertedCheckpoint) -> MatchReport:
    """Compare the weights with the model, or with its backbone if they are a backbone's."""
    from sparse_detr.checkpoint import match_report

    if converted.description.recipe is not None:
        return match_report(model, converted.state_dict)
    weights = {name.removeprefix("backbone."): value for name, value in converted.state_dict.items()}
    return match_report(model.get_submodule("backbone"), weights)


def _model(config_file: Path) -> nn.Module:
    from sparse_detr._detectron2 import require_detectron2

    require_detectron2()
    from sparse_detr.config import load_config
    from sparse_detr.config.model import build_detector

    return build_detector(load_config(str(config_file)), device="cpu")


def _write_converted(converted: ConvertedCheckpoint, path: Path) -> None:
    """Write weights and origin; `torch.load(weights_only=True)` and Detectron2's checkpointer can read the file."""
    metadata = {
        "source": converted.source,
        "recipe": converted.description.recipe,
        "backbone": converted.description.backbone,
        "arguments": converted.description.arguments,
        "overrides": converted.description.overrides,
    }
    _save_weights(path, {"model": converted.state_dict, "metadata": metadata})


def _save_weights(path: Path, content: dict[str, Any]) -> None:
    import torch

    weights = {name: value.contiguous().clone() for name, value in content["model"].items()}
    write_atomically(path, lambda file: torch.save({**content, "model": weights}, file))
