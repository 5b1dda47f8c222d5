"""Measure latency, FLOPs, memory and AP of a detector by part, beside its optimised form and other detectors.

Needs a quiet machine: it measures the load by other processes and prints no table if the machine was busy.
docs/benchmark.md tells how to read the numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides, weights_text
from sparse_detr.cli._optimize import PRECISIONS
from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_text_atomically

if TYPE_CHECKING:
    from sparse_detr.benchmark.contestants import Contestant
    from sparse_detr.benchmark.images import ImageStream

BUSY = 1  # the exit code if no table is printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    add_model(parser, random_weights=", which take as long")
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", help="images, folders or glob patterns (default: the evaluation data)"
    )
    parser.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 2, 4], metavar="N", help="images in a batch (1 2 4)"
    )
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="rounds that count (10)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of PyTorch on the CPU (default: its own)")
    parser.add_argument(
        "--optimize",
        nargs="*",
        choices=PRECISIONS,
        metavar="PRECISION",
        help=f"also time the inference form: {', '.join(PRECISIONS)} (default: fp32)",
    )
    add_budget(parser, several=True)
    parser.add_argument(
        "--rival",
        nargs="+",
        default=[],
        metavar="NAME",
        help="detectors beside it: transformers, rf-detr-nano|small|medium, detectron2:CONFIG or CONFIG=WEIGHTS",
    )
    parser.add_argument(
        "--evaluate", action="store_true", help="also evaluate the very models that were timed on the config's data"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output/benchmark"), metavar="DIR", help="folder (output/benchmark)"
    )
    parser.add_argument(
        "--allow-busy", action="store_true", help="print tables though the machine is busy; they say so first"
    )
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, print and save; return 0, or 1 without tables if the machine was busy."""
    check_options(args)
    require_detectron2()
    import torch

    from sparse_detr.benchmark.machine import REMEDY, find_disturbance, sample_load
    from sparse_detr.benchmark.measure import make_record, measure_ap, measure_memory, measure_times

    if args.threads:
        torch.set_num_threads(args.threads)
    make_folder(args.output)
    setting = _prepare(args)
    for contestant in setting.contestants:
        print(f"{contestant.name}: {contestant.note or 'as it is'}")
    load = sample_load()
    if (problem := find_disturbance({"before": load})) and not args.allow_busy:
        print(f"nothing was measured: {problem}; {REMEDY}")
        return BUSY
    gigaflops = {contestant.name: contestant.gigaflops(setting.first_image) for contestant in setting.contestants}
    common: dict[str, Any] = {"batch_sizes": args.batch_sizes, "device": setting.device}
    measured = measure_times(setting.contestants, setting.images, rounds=args.rounds, load_before=load, **common)
    quiet = measured.disturbance is None or args.allow_busy
    record = make_record(
        setting.contestants,
        measured,
        config=args.config_file,
        weights=weights_text(args.weights, averaged=args.ema) or None,
        rounds=args.rounds,
        images=setting.images,
        gigaflops=gigaflops,
        peaks=measure_memory(setting.contestants, setting.images, **common) if quiet else {},
        **common,
    )
    save(record, args.output)  # an evaluation is long, and may fail
    if quiet and args.evaluate:
        scores = measure_ap(setting.contestants, setting.run)
        record["contestants"] = [{**entry, "scores": scores.get(entry["name"])} for entry in record["contestants"]]
    return report(record, args.output, allow_busy=args.allow_busy)


class _Setting:
    """What the command line asks for: the contestants, their images, and the device.

    Args:
        contestants: in the order of the tables.
        images: a stream of inputs.
        first_image: on which FLOPs are counted.
        device: of all models.
        run: the config's evaluation; None unless it is asked for.
    """

    def __init__(
        self, contestants: list[Contestant], images: ImageStream, first_image: dict[str, Any], device: str, run: Any
    ) -> None:
        self.contestants, self.images, self.first_image = contestants, images, first_image
        self.device, self.run = device, run


def _prepare(args: argparse.Namespace) -> _Setting:
    """Build the models and the stream of images."""
    from sparse_detr.benchmark.contestants import our_contestants
    from sparse_detr.benchmark.images import ImageStream, files_of_evaluation
    from sparse_detr.benchmark.rivals import Reference, make_rival
    from sparse_detr.cli.demo import find_images
    from sparse_detr.config import load_config
    from sparse_detr.config.model import build_detector, build_test_mapper, usable_device
    from sparse_detr.config.own_data import use_own_data
    from sparse_detr.config.run import make_run
    from sparse_detr.engine.weights import load_trained_weights

    cfg = load_config(args.config_file, args.opts)
    if args.evaluate or not args.input:
        use_own_data(cfg, {}, args.opts)
    mapper = build_test_mapper(cfg)
    evaluation = make_run(cfg) if args.evaluate else None
    if evaluation is not None and not evaluation.evaluation_sets:
        raise UserError("--evaluate: the config names no evaluation data; leave --evaluate out")
    needed = (args.rounds + 1) * sum(args.batch_sizes)
    files = find_images(args.input) if args.input else files_of_evaluation(cfg, needed)
    device = usable_device(cfg)
    model = build_detector(cfg, device=device)
    load_trained_weights(model, args.weights or "", ema=args.ema)
    name = Path(args.config_file).stem
    precisions = (args.optimize or ["fp32"]) if args.optimize is not None else []
    contestants = our_contestants(
        model,
        name,
        is_trained=bool(args.weights),
        budgets=args.budget,
        precisions=precisions,
        weights=args.weights or "",
        ema=args.ema,
    )
    samples = ImageStream(files, mapper).batch(2)
    ours = Reference(
        name=name,
        model=model,
        image_format=getattr(mapper, "image_format", "BGR"),
        is_trained=bool(args.weights),
        device=device,
        images=samples,
    )
    contestants += [make_rival(rival, ours) for rival in args.rival]
    _check_names([contestant.name for contestant in contestants])
    return _Setting(contestants, ImageStream(files, mapper), samples[0], device, evaluation)


def _check_names(names: Sequence[str]) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two models would have the name {twice[0]} in the tables; name each once")


def save(record: dict[str, Any], folder: Path) -> Path:
    """Write the raw numbers as JSON; return the path."""
    from sparse_detr.benchmark.report import file_stem

    path = folder / f"{file_stem(record)}.json"
    write_text_atomically(path, json.dumps(record, indent=1) + "\n")
    return path


def report(record: dict[str, Any], folder: Path, *, allow_busy: bool) -> int:
    """Save the record, and tables and picture of a quiet machine; print them; return the exit code."""
    from sparse_detr.benchmark.machine import REMEDY
    from sparse_detr.benchmark.picture import draw
    from sparse_detr.benchmark.report import as_csv, as_markdown

    raw = save(record, folder)
    if record["disturbance"] and not allow_busy:
        print(f"no table: {record['disturbance']}; {REMEDY}")
        print(f"the raw numbers are in {raw}, marked as disturbed")
        return BUSY
    picture = raw.with_suffix(".png")
    draw(record, picture)
    text = as_markdown(record, picture.name)
    write_text_atomically(raw.with_suffix(".md"), text)
    write_text_atomically(raw.with_suffix(".csv"), as_csv(record))
    print(text)
    print(f"saved as {raw.with_suffix('')} with the ends json, csv, md and png")
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    _check_counts("--batch-sizes", args.batch_sizes)
    _check_counts("--rounds", [args.rounds])
    if args.threads is not None:
        _check_counts("--threads", [args.threads])
    args.budget = [checked_budget("--budget", budget) for budget in args.budget]
    if args.weights is not None and not args.weights.strip():
        raise UserError("--weights is empty; give a checkpoint, or leave it out for random weights")
    if args.optimize and len(set(args.optimize)) < len(args.optimize):
        raise UserError(f"--optimize names a precision twice: {' '.join(args.optimize)}; name each once")
    if args.ema and not args.weights:
        raise UserError("--ema needs a checkpoint; give --weights FILE")
    if args.evaluate and not args.weights:
        raise UserError("--evaluate with random weights says nothing; give --weights FILE")
    for option, values in (("--batch-sizes", args.batch_sizes), ("--budget", args.budget)):
        if len(set(values)) < len(values):
            raise UserError(f"{option} names a value twice: {' '.join(map(str, values))}; name each once")


def _check_counts(option: str, values: Sequence[int]) -> None:
    for value in values:
        if value < 1:
            raise UserError(f"{option} {value} cannot be used; give whole numbers, 1 or more")
