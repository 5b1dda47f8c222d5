"""Explain detections: which tokens they were made from, from which budget on they are found, where the cost goes."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.checks import check_score
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides, weights_text
from sparse_detr.cli.demo import find_images, load_predictor, unique_stems
from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import make_folder, write_text_atomically

if TYPE_CHECKING:
    from sparse_detr import Predictor
    from sparse_detr.explain import ImageRuns, ImageStory, Target

PAGE, NUMBERS = "explain.html", "explain.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="images, folders or glob patterns")
    add_model(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the page and pictures")
    parser.add_argument("--score-threshold", type=float, default=0.3, metavar="S", help="lowest score shown (0.3)")
    parser.add_argument(
        "--detection", type=int, nargs="+", default=[], metavar="N", help="detections to explain, from 1, best first"
    )
    parser.add_argument("--count", type=int, default=3, metavar="N", help="explain the best N detections (3)")
    parser.add_argument("--draws", type=int, default=3, metavar="N", help="draws of random tokens to compare with (3)")
    add_budget(parser, tokens_alone=True)
    parser.add_argument("--truth", metavar="FILE", help="COCO file with the true boxes of the images")
    parser.add_argument(
        "--compare", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="a second model: what it gains and loses"
    )
    parser.add_argument("--compare-ema", action="store_true", help="take the averaged weights of the second model")
    parser.add_argument("--no-sanity", action="store_true", help="leave out the check against random weights")
    parser.add_argument("--train-json", metavar="FILE", help="COCO file that the model was trained on: its classes")
    parser.add_argument("--max-images", type=int, metavar="N", help="stop after N images")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON, and no text")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Explain every image that can be read; return 0, or 1 if none can."""
    check_options(args)
    require_detectron2()
    files = find_images(args.images, option="IMAGE")[: args.max_images]
    make_folder(args.output)
    args.optimize = None  # what is explained is the model as it is
    with contextlib.redirect_stdout(sys.stderr if args.json else sys.stdout):
        predictor = load_predictor(args)
    if not hasattr(predictor.model, "outputs"):
        raise UserError(f"{args.config_file} describes a model of another package; give one of sparse_detr")
    explained, skipped = explain_images(args, predictor, files)
    for reason in skipped:
        print(f"  skipped {reason}", file=sys.stderr if args.json else sys.stdout)
    if not explained:
        return 1
    write_results(args, predictor, explained)
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that cannot be used.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    check_score("--score-threshold", args.score_threshold)
    args.budget = checked_budget("--budget", args.budget)
    if args.compare_ema and not args.compare:
        raise UserError("--compare-ema needs a second model; give --compare CONFIG WEIGHTS")
    for option in ("count", "draws", "max_images"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is {value}; give 1 or more")
    if wrong := [number for number in args.detection if number < 1]:
        raise UserError(f"--detection {wrong[0]}: detections are counted from 1, best first")


@dataclass(frozen=True, eq=False)
class Explained:
    """What is kept of an image until all are explained; its pictures and arrays are written already.

    Args:
        runs, targets: of the image, to try shares of the levels on.
        entry: of the page.
        numbers: see `explain.report.numbers_of`.
        text: see `explain.report.text_of`.
    """

    runs: ImageRuns
    targets: Sequence[Target]
    entry: dict[str, Any]
    numbers: dict[str, Any]
    text: str


def explain_images(
    args: argparse.Namespace, predictor: Predictor, files: Sequence[str]
) -> tuple[list[Explained], list[str]]:
    """Explain every image that can be explained and write its files; return these and one reason for each other one."""
    from tqdm import tqdm

    from sparse_detr.budget import check_tokens_alone, resolved
    from sparse_detr.config.num_classes import model_classes
    from sparse_detr.explain import Choices, explain_image

    choices = Choices(
        score_threshold=args.score_threshold, detections=args.detection, count=args.count, draws=args.draws
    )
    budget = resolved(args.budget, weights=predictor.weights, form=None, ema=args.ema)
    check_tokens_alone("--budget", budget)
    truths = Truth(args.truth, predictor.class_names, model_classes(predictor.model)) if args.truth else None
    second = second_model(args.compare, predictor, averaged=args.compare_ema) if args.compare else None
    random_model = None if args.no_sanity else random_twin(args, predictor)
    explained, skipped = [], []
    stems = unique_stems([NUMBERS, *files])[1:]  # no image may take the name of the numbers
    for file, stem in zip(tqdm(files, desc="explaining", unit="image"), stems, strict=True):
        try:
            image, item = predictor.read(file), predictor.preprocess(file)
        except ImageError as error:
            skipped.append(str(error))
            continue
        try:
            story = explain_image(
                predictor.model,
                item,
                image,
                name=Path(file).name,
                choices=choices,
                truth=None if truths is None else truths.of(file),
                random_model=random_model,
                other=None if second is None else (second.model, second.preprocess(file)),
                budget=budget,
            )
        except UserError as error:
            if len(files) == 1:
                raise UserError(f"{file}: {error}") from error
            skipped.append(f"{file}: {error}")
            continue
        explained.append(write_image(args, predictor, story, file, stem))
    return explained, skipped


def second_model(paths: Sequence[str], first: Predictor, *, averaged: bool = False) -> Predictor:
    """Load the model to compare with; `averaged` takes the averaged weights of its checkpoint.

    Raises:
        UserError: it is no model of this package, or its classes are not those of the first model.
    """
    from sparse_detr import Predictor
    from sparse_detr.config.num_classes import model_classes

    second = Predictor(*paths, ema=averaged, device=str(first.model.device))
    if not hasattr(second.model, "outputs"):
        raise UserError(f"--compare {paths[0]} describes a model of another package; give one of sparse_detr")
    numbers = model_classes(first.model), model_classes(second.model)
    if None not in numbers and numbers[0] != numbers[1]:
        raise UserError(
            f"--compare {paths[1]} has {numbers[1]} classes, but --weights {numbers[0]}; give a model of the same data"
        )
    if first.class_names and second.class_names and first.class_names != second.class_names:
        raise UserError(
            f"--compare {paths[1]} has the classes {', '.join(second.class_names)}, but --weights "
            f"{', '.join(first.class_names)}; give a model of the same data"
        )
    return second


def random_twin(args: argparse.Namespace, predictor: Predictor) -> Any:
    """Return the model of the config with its initial weights, which are random, always the same ones."""
    import torch

    from sparse_detr.config import load_config
    from sparse_detr.config.model import build_detector, set_num_classes

    cfg = load_config(args.config_file, args.opts)
    if predictor.class_names:
        set_num_classes(cfg, len(predictor.class_names))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_detector(cfg, device=str(predictor.model.device)).eval()


class Truth:
    """The true objects of a COCO file.

    Args:
        path: the file.
        class_names: of the model, by class index; empty if they are unknown.
        num_classes: of the model; None if it does not say.

    Raises:
        UserError: the file cannot be read, has none of these classes, or another number of classes where the names of
            the model's are unknown.
    """

    def __init__(self, path: str, class_names: Sequence[str], num_classes: int | None) -> None:
        from sparse_detr.data.annotations import read_coco_file
        from sparse_detr.data.records import ground_truth

        self.path, self.coco = path, read_coco_file(path)
        self.annotations = ground_truth(self.coco)["annotations"]
        if not class_names and num_classes not in (None, len(self.coco.class_names)):
            raise UserError(
                f"--truth {path} has {len(self.coco.class_names)} classes, but the model {num_classes} without names; "
                "give the file of the same data, or the names with --train-json"
            )
        names = class_names or list(self.coco.class_names.values())
        self.labels = {key: names.index(name) for key, name in self.coco.class_names.items() if name in names}
        if not self.labels:
            raise UserError(
                f"--truth {path} has the classes {', '.join(self.coco.class_names.values())}, but the model "
                f"{', '.join(class_names)}; give the file of the same data"
            )
        self.ids: dict[str, list[int]] = {}
        for key, image in self.coco.sound_images.items():
            self.ids.setdefault(Path(image["file_name"]).name, []).append(key)

    def of(self, file: str) -> list[Target]:
        """Return the true objects of an image, found by its file name; of equal names the one in the same folder.

        Raises:
            UserError: the file has no such image, or several.
        """
        import torch

        from sparse_detr.explain import Target

        key = self._image_of(Path(file))
        found = []
        for item in self.annotations:
            if item["image_id"] == key and item["category_id"] in self.labels and not item["iscrowd"]:
                left, top, width, height = item["bbox"]
                corners = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
                found.append(Target(corners, self.labels[item["category_id"]], area=item["area"]))
        return found

    def _image_of(self, file: Path) -> int:
        """Return the id of an image."""
        keys = self.ids.get(file.name, [])
        if len(keys) > 1:  # the same name in several folders
            whole = file.resolve().parts
            named = {key: Path(self.coco.sound_images[key]["file_name"]).parts for key in keys}
            keys = [key for key, parts in named.items() if len(parts) > 1 and whole[-len(parts) :] == parts]
            if len(keys) != 1:
                raise UserError(f"--truth {self.path} has several images {file.name}; give a file with one of them")
        if not keys:
            raise UserError(f"--truth {self.path} has no image {file.name}; leave --truth out, or give its file")
        return keys[0]


def write_image(args: argparse.Namespace, predictor: Predictor, story: ImageStory, file: str, stem: str) -> Explained:
    """Write the pictures and arrays of an image under a stem; return what the page and the numbers need of it."""
    from sparse_detr.explain.page import page_entry
    from sparse_detr.explain.report import numbers_of, text_of, write_arrays, write_pictures
    from sparse_detr.visualization import list_detections
    from sparse_detr.visualization.pictures import write_files

    names, prefix = predictor.class_names, args.output / stem
    found = predictor.model.detections(story.runs.output, [story.runs.item])[0]["instances"]
    detections = list_detections(found, names, args.score_threshold)
    caption = f"score at least {args.score_threshold:g}"
    origin = {"file_name": file, **origin_of(args, predictor)}
    write_files(prefix, story.image, detections, story.maps, caption=caption, origin=origin)
    write_pictures(prefix, story, names)
    write_arrays(args.output / f"{stem}.npz", story)
    return Explained(
        runs=story.runs,
        targets=story.targets,
        entry=page_entry(story, names),
        numbers=numbers_of(story, names, file),
        text=text_of(story, names),
    )


def origin_of(args: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """Return what the files say of the model and the detections."""
    weights = weights_text(args.weights, averaged=args.ema)
    return {"weights": weights, "class_names": predictor.class_names, "score_threshold": args.score_threshold}


def write_results(args: argparse.Namespace, predictor: Predictor, explained: Sequence[Explained]) -> None:
    """Write the page and the numbers, and print the text or the numbers."""
    from sparse_detr.explain import propose_levels
    from sparse_detr.explain.page import write_page
    from sparse_detr.explain.words import proposal_sentence

    proposal = propose_levels([(one.runs, one.targets) for one in explained], score_threshold=args.score_threshold)
    origin = origin_of(args, predictor)
    numbers = {
        **origin,
        "proposal": None if proposal is None else {**vars(proposal), "is_better": proposal.is_better},
        "images": [one.numbers for one in explained],
    }
    text = json.dumps(numbers, indent=1)
    write_text_atomically(args.output / NUMBERS, text + "\n")
    page = write_page(
        [one.entry for one in explained],
        model=origin["weights"],
        score_threshold=args.score_threshold,
        proposal=proposal,
    )
    write_text_atomically(args.output / PAGE, page)
    if args.json:
        print(text)
        return
    for one in explained:
        print(one.text)
    if proposal is not None:
        print(proposal_sentence(proposal))
    print(f"open {args.output / PAGE} in a browser; pictures, arrays (*.npz) and numbers ({NUMBERS}) lie beside it")
