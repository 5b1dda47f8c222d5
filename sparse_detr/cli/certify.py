"""Check that images give alone what they give in a batch, in every dtype, form and budget, within stated tolerances."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import check_fits, check_tokens_alone, checked_budget, resolved
from sparse_detr.cli._budget import HELP, TIME_HELP
from sparse_detr.cli._model import add_model, add_overrides, weights_text
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from sparse_detr.analysis.certificate import Comparison

DTYPES = ("float64", "float32", "bfloat16", "float16")
FORMS = ("plain", "optimized")
OWN = "own"
SHAKEN = 0.02
"""Standard deviation of the noise on random weights, in which zeros of the initialisation would hide errors."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser, random_weights="")
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders or glob patterns (default: the evaluation data)"
    )
    parser.add_argument("--max-images", type=int, default=4, metavar="N", help="of the images, the first N (4)")
    parser.add_argument("--batch-size", type=int, default=2, metavar="N", help="images in a batch, 2 or more (2)")
    parser.add_argument(
        "--budget",
        nargs="+",
        default=[OWN],
        metavar="B",
        help=f"own for the model's own; or {HELP}{TIME_HELP} (own)",
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float64", "float32"], help="(float64 float32)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["plain"], help="the model, its inference form")
    parser.add_argument("--draws", type=int, default=2, metavar="N", help="how often rounding is imitated (2)")
    parser.add_argument("--json", action="store_true", help="print all numbers as JSON and nothing else")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Compare and print; return 0 if everything is inside the tolerances, else 1."""
    check_options(args)
    require_detectron2()
    from sparse_detr.analysis.certificate import exceptions_of
    from sparse_detr.analysis.certificate_report import as_record, as_text

    model, inputs = _load(args)
    budgets = {text: None if text == OWN else checked_budget("--budget", text) for text in args.budget}
    weights = args.weights or ""
    budgets = {text: resolved(budget, weights=weights, form=None, ema=args.ema) for text, budget in budgets.items()}
    for budget in budgets.values():
        check_tokens_alone("--budget", budget)
        check_fits("--budget", budget, model)
    exceptions = sorted({text for budget in budgets.values() for text in exceptions_of(model, budget)})
    entries, skipped = _compare(args, model, inputs, budgets)
    if not entries:
        raise UserError(f"nothing can be compared: {'; '.join(skipped)}")
    record = as_record(
        entries,
        exceptions=exceptions,
        skipped=skipped,
        images=len(inputs),
        batch_size=args.batch_size,
        config=args.config_file,
        weights=weights_text(args.weights, averaged=args.ema),
    )
    print(json.dumps(record, indent=1) if args.json else as_text(record))
    return int(not record["passed"])


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    for option, least in (("max_images", 1), ("batch_size", 2), ("draws", 1)):
        if (value := getattr(args, option)) < least:
            raise UserError(f"--{option.replace('_', '-')} {value} cannot be used; give {least} or more")
    if args.weights is not None and not args.weights.strip():
        raise UserError("--weights is empty; give a checkpoint, or leave it out for random weights")
    if args.ema and not args.weights:
        raise UserError("--ema needs a checkpoint; give --weights FILE")
    for option in ("budget", "dtypes", "forms"):
        values = getattr(args, option)
        if len(set(values)) < len(values):
            raise UserError(f"--{option} names a value twice: {' '.join(values)}; name each once")


def _load(args: argparse.Namespace) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Return the model in eval mode and the inputs."""
    import torch

    from sparse_detr.benchmark.images import ImageStream, files_of_evaluation
    from sparse_detr.cli.demo import find_images
    from sparse_detr.config import load_config
    from sparse_detr.config.model import build_detector, build_test_mapper
    from sparse_detr.config.own_data import use_own_data
    from sparse_detr.engine.weights import load_trained_weights
    from sparse_detr.modeling.transformer import DetectionTransformer

    cfg = load_config(args.config_file, args.opts)
    if not args.input:
        use_own_data(cfg, {}, args.opts)
    mapper = build_test_mapper(cfg)
    files = find_images(args.input)[: args.max_images] if args.input else files_of_evaluation(cfg, args.max_images)
    images = ImageStream(files, mapper)
    inputs = images.batch(len(files))[: images.num_files]  # without the repetitions in place of unreadable ones
    if unread := len(files) - len(inputs):
        print(f"{unread} of {len(files)} images cannot be read and are left out", file=sys.stderr)
    torch.manual_seed(0)
    model = build_detector(cfg).eval()
    if not isinstance(model, DetectionTransformer):
        raise UserError(f"a {type(model).__name__} is Detectron2's own model; certify needs one of this project")
    load_trained_weights(model, args.weights or "", ema=args.ema)
    if not args.weights:
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(SHAKEN * torch.randn_like(weight))
    return model, inputs


def _compare(
    args: argparse.Namespace, model: nn.Module, inputs: Sequence[dict[str, Any]], budgets: dict[str, Any]
) -> tuple[list[tuple[dict[str, str], Comparison]], list[str]]:
    """Return the comparisons with their settings, and the settings that cannot be."""
    import copy

    import torch
    from tqdm import tqdm

    from sparse_detr.analysis.certificate import Certifier, batches_of

    reference, batches = copy.deepcopy(model).double(), batches_of(inputs, args.batch_size)
    entries: list[tuple[dict[str, str], Comparison]] = []
    skipped: list[str] = []
    steps = len(budgets) * len(args.dtypes) * len(args.forms)
    with tqdm(total=steps, desc="certifying", unit="setting", disable=None) as progress:
        for text, budget in budgets.items():
            certifier = Certifier(reference, batches, budget, draws=args.draws)
            for name in args.dtypes:
                dtype = getattr(torch, name)
                allowed = certifier.allowed(dtype)
                for form in args.forms:
                    progress.update()
                    try:
                        formed = in_form(model, form, dtype)
                    except ValueError as error:
                        skipped.append(f"{form} {name}: {error}")
                        continue
                    setting = {"budget": text, "dtype": name, "form": form}
                    entries += [(setting, found) for found in certifier.comparisons(formed, allowed)]
    return entries, sorted(set(skipped))


def in_form(model: nn.Module, form: str, dtype: Any) -> nn.Module:
    """Return a copy of the model in a form and dtype.

    Args:
        model: with its own dtype.
        form: `plain` has weights of the dtype; `optimized` is the inference form, with weights of float32 or float64.
        dtype: of torch.

    Raises:
        ValueError: there is no such form here.
    """
    import copy
    import warnings

    import torch

    from sparse_detr.inference import optimize

    if form == "plain":
        return copy.deepcopy(model).to(dtype)
    if dtype == torch.float64:
        return optimize(copy.deepcopy(model).double())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this CPU has no instructions for bfloat16")  # time does not matter here
        return optimize(copy.deepcopy(model).float(), dtype=dtype)
