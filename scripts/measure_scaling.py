"""Measure how time and memory grow with the image, the batch and the share of the tokens that is refined.

    python scripts/measure_scaling.py curves                                measure what is missing, print the tables
    python scripts/measure_scaling.py curves large memory --readme docs/inference.md
    python scripts/measure_scaling.py curves --scale 0.25 --rounds 1        a quick trial with small images
    python scripts/measure_scaling.py curves --report --readme FILE         tables and picture of what was measured

`curves`: Sparse DETR and its dense twin, time against image side, batch and share. `large`: five levels (strides 4 to
64), and images of 800x1333: time, peak memory, and peak memory of a training step. `memory`: peak memory of one image
of 800x1066, beside `transformers`.

Protocol: one thread, CPU time of that thread, float32, ResNet-50, random weights, fresh random images in every round;
all models and forms of one image size and batch in turn, in an order that rotates. The first round warms up and does
not count. Above a megapixel there are fewer rounds. Peak memory is the growth of resident memory in a call behind the
rounds, beyond models and images; gradients count, the states of an optimiser do not. Always with glibc's allocator set
to keep freed memory. Every round is saved, so that the command can be stopped and goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import measure_inference as inference  # first: it sets the number of threads
import scaling_picture
import scaling_report
import torch
from measure_training import calm, random_batches
from scaling_report import TRAINING, Cell, Measured
from torch import Tensor, nn
from tqdm import tqdm

from sparse_detr.analysis.cost import training_step
from sparse_detr.analysis.machine import use_clean_allocator
from sparse_detr.analysis.memory import peak_mib
from sparse_detr.analysis.tables import fill_readme
from sparse_detr.benchmark.timing import rotated
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically
from sparse_detr.inference import optimize

FIVE_LEVELS = (
    *("MODEL.RESNETS.OUT_FEATURES", "['res2','res3','res4','res5']"),
    *("MODEL.DETR.NUM_LEVELS", "5"),
    *("MODEL.BACKBONE.FREEZE_AT", "2"),  # the papers differ here, and a frozen stage saves memory in training
)
MODELS: dict[str, tuple[str, Sequence[str]]] = {
    "dense": (inference.MODELS["dense"][1], ()),
    "topk": (inference.MODELS["topk"][1], ()),
    "sparse": (inference.MODELS["rho10"][1], ()),
    "dino5": ("DINO/configs/dino_r50_4scale_12ep.yaml", FIVE_LEVELS),
    "focus5": ("FocusDETR/configs/focus_detr_r50_36ep.yaml", FIVE_LEVELS),
    "sparse_dino5": ("SparseDETR/configs/sparse_dino_r50_rho30.yaml", FIVE_LEVELS),
}
"""Name -> config in `projects` and overrides. A share of a cell goes into the call as its budget."""
FORMS = ("plain", "fp32")
MEGAPIXEL = 1_000_000
FEWER_ROUNDS = 2  # above a megapixel
PROGRESS = "{l_bar}{bar}| {elapsed} gone, {remaining} to go{postfix}"


@dataclass(frozen=True)
class Study:
    """What a study measures.

    Args:
        timed: cells whose time counts.
        weighed: cells whose peak memory counts.
    """

    timed: Sequence[Cell] = ()
    weighed: Sequence[Cell] = ()


def curves() -> Study:
    """Return the points of the curves; the share varies at 800x1066."""
    dense_and_sparse = (("topk", None), ("sparse", 10))
    sides = [(1, size) for size in ((240, 320), (360, 480), (480, 640), (800, 1066), (1200, 1600))]
    batches = [(batch, (240, 320)) for batch in (2, 4, 8)]
    cells = [
        Cell(model, form, *size, batch, percent)
        for batch, size in sides + batches
        for model, percent in dense_and_sparse
        for form in FORMS
    ]
    cells += [Cell("sparse", "fp32", 800, 1066, 1, percent) for percent in (5, 20, 30, 50, 70, 100)]
    cells += [Cell("sparse", "plain", 800, 1066, 1, percent) for percent in (5, 30, 100)]
    return Study(timed=cells)


def large() -> Study:
    """Return models with four and five levels at 800x1333, and the memory of five levels at smaller sizes."""
    largest, smaller, training = (800, 1333), ((240, 400), (480, 800)), ((160, 266), (240, 400), (320, 533))
    four = [Cell("topk", "fp32", *largest), *(Cell("sparse", "fp32", *largest, 1, percent) for percent in (30, 10))]
    models = (("dino5", None), ("focus5", None), ("sparse_dino5", 10))
    five = [Cell(model, form, *largest, 1, percent) for model, percent in models for form in FORMS]
    timed = four + [cell for cell in five if (cell.model, cell.form) != ("sparse_dino5", "plain")]
    weighed = [Cell(model, form, *size, 1, percent) for size in smaller for model, percent in models for form in FORMS]
    weighed += [Cell(model, TRAINING, *size, 1, percent) for size in training for model, percent in models]
    return Study(timed=timed, weighed=[*weighed, *four, *five])


def memory() -> Study:
    """Return the models of the table of peak memory."""
    ours = (("dense", None), ("topk", None), ("sparse", 30), ("sparse", 10))
    cells = [Cell(model, form, 800, 1066, 1, percent) for model, percent in ours for form in FORMS]
    return Study(weighed=[Cell(inference.PEER, "plain", 800, 1066), *cells])


STUDIES: dict[str, Callable[[], Study]] = {"curves": curves, "large": large, "memory": memory}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    args = parse_arguments(argv)
    if not args.report and argv is None:
        use_clean_allocator()
    try:
        for name in args.studies:
            run(name, args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY", help="curves, large or memory")
    parser.add_argument("--output", type=Path, default=Path("output/scaling"), help="folder of the results")
    parser.add_argument("--rounds", type=int, default=3, help="that count; at most 2 above a megapixel (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="of all image sides, for a trial (%(default)s)")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--readme", type=Path, help="file with lines such as `<!-- table scaling curves -->`")
    return parser.parse_args(argv)


def run(name: str, args: argparse.Namespace) -> None:
    """Measure what a study lacks, and report it."""
    path = args.output / f"scaling_{name}.json"
    facts = inference.machine()
    results = json.loads(path.read_text()) if path.is_file() else {"machine": facts, "cells": []}
    measured = {Cell(**found["cell"]): Measured(**found) for found in results["cells"]}
    if not args.report:
        if results["machine"] != facts:
            raise UserError(f"{path} is of another machine: {results['machine']}; give another --output")
        torch.set_num_threads(1)
        args.output.mkdir(parents=True, exist_ok=True)

        def save() -> None:
            results["cells"] = [asdict(found) for found in measured.values()]
            write_text_atomically(path, json.dumps(results, indent=1))

        measure(scaled(STUDIES[name](), args.scale), args.rounds, measured, save, name)
    known = [found for found in measured.values() if found.times("whole") or found.peak_mib]
    if not known:
        raise UserError(f"nothing of {name} was measured in {args.output}; leave --report out")
    text = scaling_report.REPORTS[name](known, results["machine"])
    if name == "curves":
        text = with_picture(text, known, results["machine"], args)
    print(text)
    if args.readme:
        fill_readme(args.readme, f"scaling {name}", text)


def with_picture(text: str, measured: list[Measured], facts: dict[str, str], args: argparse.Namespace) -> str:
    """Draw the curves beside the README, or else into the output folder; return the text with the picture on top."""
    folder = args.readme.with_suffix("") if args.readme else args.output
    folder.mkdir(parents=True, exist_ok=True)
    scaling_picture.draw(measured, facts, folder / "scaling.png")
    return f"![Time against image, batch and share of tokens]({folder.name}/scaling.png)\n\n{text}"


def scaled(study: Study, scale: float) -> Study:
    """Return a study with smaller images."""
    return Study(*([cell.scaled(scale) for cell in cells] for cells in (study.timed, study.weighed)))


def measure(
    study: Study, rounds: int, measured: dict[Cell, Measured], save: Callable[[], None], title: str = ""
) -> None:
    """Measure what is missing, one image size and batch after the other.

    Args:
        study: what to measure.
        rounds: that count, fewer above a megapixel.
        measured: what is known; it is added to.
        save: called after every round.
        title: of the progress bar.
    """
    missing = {cell: rounds_missing(cell, study, rounds, measured) for cell in (*study.timed, *study.weighed)}
    weighed = {cell for cell in study.weighed if cell not in measured or measured[cell].peak_mib is None}
    todo = [cell for cell, number in missing.items() if number > 0 or cell in weighed]
    for cell in todo:
        measured.setdefault(cell, Measured(asdict(cell)))
    bench, total = Bench(), sum((1 + missing[cell] + (cell in weighed)) * cell.pixels for cell in todo)
    with tqdm(total=total, desc=title, bar_format=PROGRESS) as bar:
        for shape in dict.fromkeys(cell.shape for cell in todo):
            group = [cell for cell in todo if cell.shape == shape]
            generator = torch.Generator().manual_seed(len(measured[group[0]].times("whole")))  # others after a stop
            for turn in range(1 + max(missing[cell] for cell in group)):
                images = torch.randn(shape[0], 3, *shape[1:], generator=generator)
                for cell in rotated([cell for cell in group if turn <= missing[cell]], turn):
                    bar.set_postfix_str(cell.name)
                    run = bench.time if turn else bench.warm_up
                    run(cell, images, measured[cell])
                    bar.update(cell.pixels)
                save()
            for cell in group:
                if cell in weighed:
                    bar.set_postfix_str(f"memory of {cell.name}")
                    measured[cell].peak_mib = round(peak_mib(bench.call(cell, images), "cpu"), 1)
                    bar.update(cell.pixels)
                    save()


def rounds_missing(cell: Cell, study: Study, rounds: int, measured: dict[Cell, Measured]) -> int:
    """Return how many rounds of a cell are still to be timed."""
    if cell not in study.timed:
        return 0
    wanted = min(rounds, FEWER_ROUNDS) if cell.pixels > MEGAPIXEL else rounds
    return max(0, wanted - (len(measured[cell].times("whole")) if cell in measured else 0))


@dataclass
class Bench:
    """The models, each built when it is first needed.

    Args:
        plain: name -> model as it is.
        forms: name -> model in inference form.
        training: name and share -> detector in training mode.
    """

    plain: dict[str, nn.Module] = field(default_factory=dict)
    forms: dict[str, nn.Module] = field(default_factory=dict)
    training: dict[tuple[str, int | None], nn.Module] = field(default_factory=dict)

    def model(self, cell: Cell) -> nn.Module:
        """Return the model of a cell."""
        if cell.model not in self.plain:
            self._build(cell.model)
        if cell.form == "plain":
            return self.plain[cell.model]
        if cell.model not in self.forms:
            self.forms[cell.model] = optimize(self.plain[cell.model])
        return self.forms[cell.model]

    def _build(self, name: str) -> None:
        if name == inference.PEER:
            self.plain[name], self.plain["dense"] = inference.transformers_and_ours()
        else:
            self.plain[name] = inference.random_model(*MODELS[name])

    def call(self, cell: Cell, images: Tensor) -> Callable[[], Any]:
        """Return a function that detects in the images, and returns the seconds of the whole and of every part.

        That of a training step takes random images of its own, and returns nothing.
        """
        if cell.form == TRAINING:
            return self._step(cell)
        model = self.model(cell)
        if cell.model == inference.PEER:
            return lambda: inference.peer_action(model)(images)
        return lambda: inference.action(model, cell.keep_ratio)(images)

    def _step(self, cell: Cell) -> Callable[[], None]:
        key = cell.model, cell.percent
        if key not in self.training:
            self.training[key] = training_model(cell)
        step, batch = training_step(self.training[key]), next(random_batches(*cell.shape))

        def run() -> None:
            step(batch)
            self.training[key].zero_grad(set_to_none=True)  # gradients count in every call

        return run

    def warm_up(self, cell: Cell, images: Tensor, found: Measured) -> None:
        """Take one call that does not count, and note the number of tokens."""
        call = self.call(cell, images)
        if cell.form == TRAINING or cell.model == inference.PEER:
            call()
            return
        with counted_tokens(self.model(cell).encoder) as numbers:
            call()
        found.tokens, found.kept = numbers["tokens"], numbers["kept"]

    def time(self, cell: Cell, images: Tensor, found: Measured) -> None:
        """Time one call."""
        for part, seconds in self.call(cell, images)().items():
            found.ms.setdefault(part, []).append(1000 * seconds)


def training_model(cell: Cell) -> nn.Module:
    """Return the detector of a cell in training mode."""
    config, overrides = MODELS[cell.model]
    share = () if cell.keep_ratio is None else ("MODEL.DETR.KEEP_RATIO", str(cell.keep_ratio))
    torch.manual_seed(0)
    model = build_detector(load_config(str(inference.PROJECTS / config), [*overrides, *share]), device="cpu").train()
    calm(model)
    return model


@contextmanager
def counted_tokens(encoder: nn.Module) -> Iterator[dict[str, float]]:
    """Count the tokens of a batch, and those that a layer of the encoder refines on average, while a block runs."""
    numbers: dict[str, float] = {}

    def count(encoder: Any, inputs: tuple[Any, ...]) -> None:
        tokens, selection, *_ = inputs
        layers = range(len(encoder.layers))
        numbers["tokens"] = tokens.content.shape[0] * tokens.content.shape[1]
        numbers["kept"] = sum(int(selection.at_layer(i).counts.sum()) for i in layers) / len(layers)

    handle = encoder.register_forward_pre_hook(count)
    try:
        yield numbers
    finally:
        handle.remove()


if __name__ == "__main__":
    sys.exit(main())
