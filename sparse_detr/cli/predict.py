"""Detect in folders, lists, tar files and videos, and write COCO JSON, Parquet, YOLO text files and pictures.

A stopped run goes on where it was: the pictures are divided into shards, a finished shard is not done again, and a file
is written whole or not at all. docs/predict.md tells what each file holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr._detectron2 import require_detectron2
from sparse_detr.budget import checked_budget
from sparse_detr.checks import check_score
from sparse_detr.cli._budget import add_budget
from sparse_detr.cli._model import add_model, add_overrides
from sparse_detr.cli._optimize import add_optimize
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr import Predictor
    from sparse_detr.predict.job import Found, Job, Part
    from sparse_detr.predict.sources import Inputs

FORMATS = {
    "coco": ("detections.json",),
    "parquet": ("detections.parquet",),
    "yolo": ("labels",),
    "pictures": ("pictures", "videos"),
}
"""What each writes into the output folder."""
DEFAULT_THRESHOLD = 0.3
BATCH_SIZES = {"cpu": 1, "cuda": 8}
"""Defaults by device. On a CPU larger batches leave the caches, and are slower than single images (docs/predict.md)."""
MAX_REASONS = 10  # pictures that cannot be used, which are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="PATH",
        help="images, folders with their subfolders, patterns, a list of paths (.txt), tar files, videos",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of the results")
    add_model(parser, config="config of the model (or a file of `export`, or a folder of `pack`)", weights_inside=True)
    parser.add_argument(
        "--format", nargs="+", choices=tuple(FORMATS), default=["coco"], help="what is written of the detections (coco)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        metavar="S",
        help=f"lowest score kept (that of a packed detector, or {DEFAULT_THRESHOLD:g})",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="most detections of a picture (default: the model's)")
    add_budget(parser)
    add_optimize(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="pictures of one size run together ({cpu} on a CPU, {cuda} on a GPU)".format(**BATCH_SIZES),
    )
    parser.add_argument("--shard-size", type=int, default=256, metavar="N", help="pictures of a shard (256)")
    parser.add_argument(
        "--shard", default="1/1", metavar="i/n", help="do the i-th of n parts of the shards; others do the rest (1/1)"
    )
    parser.add_argument("--track", action="store_true", help="number the objects of a video through its frames")
    parser.add_argument(
        "--slice", type=int, metavar="PIXELS", help="detect in slices of this side and merge them; needs SAHI"
    )
    parser.add_argument("--overlap", type=float, default=0.2, metavar="SHARE", help="of two slices, with --slice (0.2)")
    parser.add_argument("--train-json", metavar="FILE", help="COCO file that the model was trained on: its classes")
    add_overrides(parser)


def run(args: argparse.Namespace) -> int:
    """Detect in what is not done yet; return 0, or 1 if no picture could be used."""
    part = check_options(args)
    require_detectron2()
    from sparse_detr.predict.formats import check_parquet
    from sparse_detr.predict.job import RECORD, SHARDS, Job
    from sparse_detr.predict.sources import find_inputs

    if "parquet" in args.format:
        check_parquet()
    written = [args.output / name for format in args.format for name in FORMATS[format]]
    check_free(args.output, written)
    inputs = find_inputs(args.input, [*written, args.output / RECORD, args.output / SHARDS])
    if args.track and not inputs.videos():
        raise UserError("--track numbers objects through the frames of a video, but --input names none; leave it out")
    predictor = load_predictor(args)
    take_options(args, predictor)
    setting, classes = setting_of(args, predictor), class_names(predictor)
    job = Job(args.output, inputs.names(), setting, classes, args.shard_size, inputs.stamps())
    detect_shards(args, predictor, inputs, job, part)
    if not job.is_done():
        missing = sum(not job.path(shard).is_file() for shard in range(len(job)))
        print(f"this part is done; {missing} of {len(job)} shards are left to others, whose last one writes the rest")
        return 0
    write_joint_results(args, inputs, job)
    return summarize(args, job)


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Load the detector that the arguments name."""
    from sparse_detr import Predictor
    from sparse_detr.config import load_config
    from sparse_detr.data.annotations import read_coco_file
    from sparse_detr.predictor import holds_weights

    if args.opts and holds_weights(args.config_file):
        raise UserError(
            f"--opts changes a config, but {args.config_file} holds a whole detector; give the config and the weights "
            "of a training, or leave the overrides out"
        )
    names = list(read_coco_file(args.train_json).class_names.values()) if args.train_json else None
    options = {"ema": args.ema, "class_names": names, "optimize": args.optimize}
    if args.budget is not None:  # else that of a saved folder
        options["budget"] = args.budget
    config = load_config(args.config_file, args.opts) if args.opts else args.config_file
    predictor = Predictor(config, args.weights, **options)
    if not predictor.class_names:
        print("the class names are unknown, so numbers are written; --train-json FILE gives the names")
    return predictor


def take_options(args: argparse.Namespace, predictor: Predictor) -> None:
    """Take the options that are not given from the predictor: those that a saved folder has."""
    if args.score_threshold is None:
        args.score_threshold = predictor.options.score_threshold or DEFAULT_THRESHOLD
    if args.top_k is None:
        args.top_k = predictor.options.top_k
    if args.batch_size is None:
        args.batch_size = BATCH_SIZES["cpu" if predictor.model.device.type == "cpu" else "cuda"]


def class_names(predictor: Predictor) -> list[str]:
    """Return the names of the classes, numbers where they are unknown."""
    from sparse_detr.config.num_classes import model_classes

    return predictor.class_names or [str(label) for label in range(model_classes(predictor.model) or 0)]


def check_options(args: argparse.Namespace) -> Part:
    """Refuse options that cannot be used; return the part of the work to do.

    Raises:
        UserError: names the option, its value and the values that are allowed.
    """
    from sparse_detr.predict.job import Part

    if args.score_threshold is not None:
        check_score("--score-threshold", args.score_threshold)
    args.budget = checked_budget("--budget", args.budget)
    for option in ("batch_size", "shard_size", "slice", "top_k"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} {value} cannot be used; give a whole number, 1 or more")
    if not 0 <= args.overlap < 1:
        raise UserError(f"--overlap {args.overlap:g} is no share of a slice; give 0 or more, below 1")
    return Part.parse(args.shard)


def check_free(output: Path, written: Sequence[Path]) -> None:
    """Raise a `UserError` if a new run would write over files of another origin, such as the labels of a data set."""
    from sparse_detr.predict.job import RECORD

    taken = [path for path in written if path.exists()]  # looked at first: another process may begin this run
    if taken and not (output / RECORD).is_file():
        raise UserError(f"{taken[0]} exists and is not of `sparse-detr predict`; give another --output")


def setting_of(args: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """Return what all detections of a run have in common."""
    import os

    from sparse_detr.budget_table import file_digest

    weights = predictor.weights
    return {
        "weights": file_digest(weights) if os.path.isfile(weights) else weights,
        "ema": args.ema,
        "overrides": args.opts,
        "budget": None if predictor.budget is None else str(predictor.budget),
        "optimize": args.optimize,
        "score_threshold": args.score_threshold,
        "top_k": args.top_k,
        "slice": args.slice,
        "overlap": args.overlap if args.slice else None,
        "formats": sorted(set(args.format)),
        **config_of(predictor),
    }


def config_of(predictor: Predictor) -> dict[str, str]:
    """Return every value of the config that detections depend on, as text by its path; {} for an exported file.

    Neither the device nor the path of the weights counts: machines that share a run may differ in them.
    """
    import re

    from sparse_detr.config.kinds import kind_of
    from sparse_detr.engine.config_changes import leaves

    if not hasattr(predictor, "config"):
        return {}
    kind = kind_of(kind_of(predictor.config).copy())
    kind.set("train.device", "")
    kind.set("train.init_checkpoint", "")
    parts = kind.choose(lazy=("model.", "dataloader.test.mapper."), yacs=("MODEL.", "INPUT.", "TEST."))
    found = {key: value for key, value in leaves(kind.values(), "") if key.startswith(parts)}
    return {key: re.sub(" at 0x[0-9a-f]+", "", value) for key, value in found.items()}  # the address of an object


def detect_shards(args: argparse.Namespace, predictor: Predictor, inputs: Inputs, job: Job, part: Part) -> None:
    """Detect in the shards of a part that are not done, and write each."""
    from tqdm import tqdm

    waiting = job.waiting(part)
    detect = detector_of(args, predictor)
    with tqdm(total=sum(len(job.pictures(shard)) for shard in waiting), unit="image", desc="detecting") as progress:
        for shard in waiting:
            numbers = job.pictures(shard)
            pictures = zip(
                numbers, (job.names[n] for n in numbers), inputs.read(numbers.start, numbers.stop), strict=True
            )
            found = []
            for one in detect(pictures):
                found.append(one)
                progress.update()
            found.sort(key=lambda one: one.number)
            write_shard(args, predictor, inputs, job, shard, found)
    inputs.close()


def detector_of(args: argparse.Namespace, predictor: Predictor) -> Any:
    """Return a function that yields what is found in pictures: number, name, and what a predictor takes."""
    from sparse_detr.predict.detect import detect_in_slices, detect_pictures, readers_of

    options = {"score_threshold": args.score_threshold, "top_k": args.top_k}
    if args.slice:
        return lambda pictures: detect_in_slices(predictor, pictures, args.slice, args.overlap, **options)
    readers = readers_of(predictor.model.device)
    return lambda pictures: detect_pictures(predictor, pictures, batch_size=args.batch_size, readers=readers, **options)


def write_shard(
    args: argparse.Namespace, predictor: Predictor, inputs: Inputs, job: Job, shard: int, found: list[Found]
) -> None:
    """Write the files of a shard, and last the shard itself, which says that they are there."""
    from sparse_detr.predict.formats import write_parquet, write_pictures, write_yolo

    if "parquet" in args.format:
        write_parquet(job.folder / "detections.parquet" / f"{shard:05d}.parquet", found, job.class_names)
    if "yolo" in args.format:
        write_yolo(job.folder / "labels", job.stems, found)
    if "pictures" in args.format:
        numbers = job.pictures(shard)
        images = inputs.read_images(numbers.start, numbers.stop)
        drawn = ((found[number - numbers.start], image) for number, image in images)
        write_pictures(job.folder / "pictures", job.stems, predictor.read, drawn, job.class_names, caption_of(args))
    job.write(shard, found)


def caption_of(args: argparse.Namespace) -> str:
    """Return what a picture says of the choice of its detections."""
    return f"score at least {args.score_threshold:g}"


def write_joint_results(args: argparse.Namespace, inputs: Inputs, job: Job) -> None:
    """Write the results that need every shard: COCO JSON, tracks and videos."""
    from sparse_detr.predict.formats import write_coco

    tracks = write_videos(args, inputs, job)
    if "coco" in args.format:
        write_coco(job, job.folder / "detections.json", tracks)


def write_videos(args: argparse.Namespace, inputs: Inputs, job: Job) -> dict[int, list[int]]:
    """Write every video with its detections, if pictures are asked for; return the tracks by number of the frame."""
    from tqdm import tqdm

    from sparse_detr.predict.job import stems_of
    from sparse_detr.predict.video import track_video, write_video

    tracks: dict[int, list[int]] = {}
    videos = inputs.videos()
    stems = stems_of([name for name, _, _ in videos])
    for (name, video, first), stem in zip(videos, stems, strict=True):
        frames = list(job.read(first, first + len(video.names)))
        numbers = track_video(frames) if args.track else None
        if numbers is not None:
            tracks |= dict(enumerate(numbers, first))
        if "pictures" in args.format:
            with tqdm(total=len(frames), unit="frame", desc=f"drawing {name}") as progress:
                write_video(
                    job.folder / "videos" / f"{stem}.mp4",
                    video,
                    frames,
                    job.class_names,
                    caption=caption_of(args),
                    tracks=numbers,
                    progress=progress.update,
                )
    return tracks


def summarize(args: argparse.Namespace, job: Job) -> int:
    """Print what was found and what could not be used; return 0, or 1 if no picture could be used."""
    used = boxes = 0
    problems = []
    for found in job.read():
        used += not found.problem
        boxes += len(found.scores)
        if found.problem:
            problems.append(found.problem)
    print(f"{boxes} detections in {used} of {len(job.names)} pictures; the results are in {args.output}")
    for problem in problems[:MAX_REASONS]:
        print(f"  cannot use {problem}", file=sys.stderr)
    if len(problems) > MAX_REASONS:
        print(f"  ... and {len(problems) - MAX_REASONS} more, see {args.output / 'shards'}", file=sys.stderr)
    return 0 if used else 1
