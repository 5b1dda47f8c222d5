"""Compare whole large images at several budgets with slices of them: AP and time on the same scenes.

    python -m sparse_detr.data.sample --output datasets/scenes --tile-size 1200    # leaves the held-out scene whole
    python scripts/compare_slicing.py --truth datasets/scenes/val.json --images datasets/scenes/val \
        --sliced output/tiles/config.yaml output/tiles/model_final.pth \
        --whole output/scenes/config.yaml output/scenes/model_final.pth

A detector that was trained on tiles is run by SAHI on slices of the tiles' size, with and without overlap, and its
detections are merged. One that was trained on large crops is run on the whole scene, with few tokens to all. Boxes of a
DETR are relative to its image, so neither can do the work of the other. Both are in inference form, with one thread.
Times are CPU times of a scene, of all in turn, with slicing and merging, without reading the file.

Numbers and a picture go into `--output`; a way that has numbers there is not measured again, and numbers
of other detectors or slices are refused. Several `--sliced` and
`--whole` are seeds, of which means and deviations are printed. With `--readme`, the table goes into the block `slicing`
of that file. SAHI is needed: pip install --no-deps sahi shapely
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sparse_detr import Predictor
from sparse_detr.analysis.machine import cpu_model
from sparse_detr.analysis.tables import fill_readme, markdown_table, mean_and_deviation
from sparse_detr.data.annotations import read_coco_file
from sparse_detr.data.records import ground_truth
from sparse_detr.errors import UserError, run_script
from sparse_detr.evaluation.coco import score_boxes
from sparse_detr.files import make_folder, write_text_atomically
from sparse_detr.predict.slicing import Merged, by_slices
from sparse_detr.visualization.figures import new_figure, save_figure

MAX_DETECTIONS = 1000
"""Detections of a class in a scene that count; COCO's 100 are too few for a scene with hundreds of objects."""
COLORS = {"slices": "#d1495b", "whole": "#2f6690"}

Boxes = list[dict[str, Any]]
"""COCO results without `image_id`: `bbox` as x, y, width, height, `score`, `category_id` as the class index."""


@dataclass(frozen=True)
class Contestant:
    """A way to detect in a scene.

    Args:
        kind: `slices` or `whole`.
        name: what differs within the kind.
        seed: number of the pair of config and weights.
        detect: (H, W, 3) uint8 RGB -> detections.
    """

    kind: str
    name: str
    seed: int
    detect: Callable[[np.ndarray], Boxes]

    @property
    def key(self) -> str:
        """Name in the JSON file."""
        return f"{self.kind} {self.name} {self.seed}"


def main() -> int:
    """Measure what is missing; print, save and draw."""
    args = parse(sys.argv[1:])
    torch.set_num_threads(1)
    scenes, truth = read_scenes(args.truth, args.images)
    make_folder(args.output)
    path = args.output / "slicing.json"
    setting = {
        "slice": args.slice,
        "averaged": args.ema,
        "rounds": args.rounds,
        "truth": args.truth,
        "pairs": [args.sliced, args.whole],
    }
    record = json.loads(path.read_text()) if path.is_file() else {"results": {}, "setting": setting}
    if record["setting"] != setting:
        raise UserError(f"{path} is of {record['setting']}, not of {setting}; give another --output, or remove it")
    record |= {"machine": cpu_model(), "torch": torch.__version__, "scenes": len(scenes)}
    waiting = [contestant for contestant in contestants(args) if contestant.key not in record["results"]]
    for contestant in waiting:
        record["results"][contestant.key] = {"kind": contestant.kind, "name": contestant.name, "seed": contestant.seed}
    if waiting:
        measure(waiting, scenes, truth, args.rounds, record)
        write_text_atomically(path, json.dumps(record, indent=1) + "\n")
    text = table(record)
    print(text + "\n\n" + "\n".join(answers(record)))
    draw(record, args.output / "slicing.png")
    if args.readme:
        fill_readme(args.readme, "slicing", text + "\n\n" + "\n".join(answers(record)))
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    pair = {"nargs": 2, "action": "append", "default": [], "metavar": ("CONFIG", "WEIGHTS")}
    parser.add_argument("--truth", required=True, metavar="FILE", help="COCO file of the scenes")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="folder of the scenes")
    parser.add_argument("--sliced", **pair, help="detector that was trained on tiles; repeatable, one a seed")
    parser.add_argument("--whole", **pair, help="detector that was trained on large crops; repeatable, one a seed")
    parser.add_argument("--ema", action="store_true", help="take the averaged weights, of all")
    parser.add_argument("--slice", type=int, default=384, metavar="PIXELS", help="side of a slice (384)")
    parser.add_argument("--overlaps", type=float, nargs="+", default=[0.0, 0.2], metavar="SHARE", help="(0 0.2)")
    parser.add_argument("--budgets", nargs="+", default=["0.05", "0.1", "0.2", "0.3", "0.5", "1"], metavar="B")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="times each scene is timed (5)")
    parser.add_argument("--output", type=Path, default=Path("output/slicing"), metavar="DIR")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="Markdown file with the block `slicing`")
    args = parser.parse_args(arguments)
    if not args.sliced and not args.whole:
        raise UserError("there is nothing to compare; give --sliced CONFIG WEIGHTS, --whole CONFIG WEIGHTS, or both")
    for share in args.overlaps:
        if not 0 <= share < 1:
            raise UserError(f"--overlaps {share:g} is no share of a slice; give 0 or more, below 1")
    return args


def read_scenes(file: str, folder: Path) -> tuple[list[tuple[int, np.ndarray]], dict[str, Any]]:
    """Return the id and the pixels (H, W, 3) RGB of every scene, and the truth."""
    from sparse_detr.data.any_image import read_any_image

    truth = ground_truth(read_coco_file(file))
    return [(image["id"], read_any_image(str(folder / image["file_name"]))) for image in truth["images"]], truth


def contestants(args: argparse.Namespace) -> list[Contestant]:
    """Return all ways to detect; models are loaded once each."""
    found = []
    for seed, (config, weights) in enumerate(args.sliced):
        predictor = Predictor(config, weights, device="cpu", optimize=True, ema=args.ema)
        for overlap in args.overlaps:
            detect = in_slices(predictor, args.slice, overlap)
            found.append(Contestant("slices", f"overlap {overlap:.0%}", seed, detect))
    for seed, (config, weights) in enumerate(args.whole):
        predictor = Predictor(config, weights, device="cpu", optimize=True, ema=args.ema)
        found += [Contestant("whole", budget, seed, as_a_whole(predictor, budget)) for budget in args.budgets]
    return found


def in_slices(predictor: Predictor, side: int, overlap: float) -> Callable[[np.ndarray], Boxes]:
    """Return a function that detects in slices of a scene, and merges what overlaps."""
    detect = by_slices(predictor, side, overlap)
    return lambda scene: rows_of(detect(scene))


def as_a_whole(predictor: Predictor, budget: str) -> Callable[[np.ndarray], Boxes]:
    """Return a function that detects in the whole scene, resized as the config says."""
    return lambda scene: coco_boxes(predictor(scene, budget=budget))


def coco_boxes(instances: Any) -> Boxes:
    """Return detections of Detectron2 as COCO results."""
    boxes, scores, labels = instances.pred_boxes.tensor, instances.scores, instances.pred_classes
    return rows_of(Merged(boxes.tolist(), scores.tolist(), labels.tolist()))


def rows_of(found: Merged) -> Boxes:
    """Return detections as COCO results."""
    rows = zip(found.boxes, found.scores, found.labels, strict=True)
    return [
        {"bbox": [x0, y0, x1 - x0, y1 - y0], "score": score, "category_id": label}
        for (x0, y0, x1, y1), score, label in rows
    ]


def measure(
    waiting: Sequence[Contestant],
    scenes: Sequence[tuple[int, np.ndarray]],
    truth: dict[str, Any],
    rounds: int,
    record: dict[str, Any],
) -> None:
    """Fill the scores and the seconds of a scene of every contestant; the first round warms up and is scored."""
    categories = [category["id"] for category in sorted(truth["categories"], key=lambda category: category["id"])]
    seconds: dict[str, list[float]] = {contestant.key: [] for contestant in waiting}
    found: dict[str, list[dict[str, Any]]] = {contestant.key: [] for contestant in waiting}
    with tqdm(total=(rounds + 1) * len(waiting) * len(scenes), unit="scene", desc="detecting") as progress:
        for turn in range(rounds + 1):
            for image_id, scene in scenes:
                for contestant in waiting[turn % len(waiting) :] + waiting[: turn % len(waiting)]:
                    start = time.process_time()
                    boxes = contestant.detect(scene)
                    if turn:
                        seconds[contestant.key].append(time.process_time() - start)
                    else:
                        found[contestant.key] += [
                            {**box, "image_id": image_id, "category_id": categories[box["category_id"]]}
                            for box in boxes
                        ]
                    progress.update()
    for contestant in waiting:
        stats = (
            score_boxes(truth, found[contestant.key], [1, 100, MAX_DETECTIONS]).stats if found[contestant.key] else None
        )
        record["results"][contestant.key] |= {
            "AP": 0.0 if stats is None else 100 * float(stats[0]),
            "AP50": 0.0 if stats is None else 100 * float(stats[1]),
            "seconds": statistics.median(seconds[contestant.key]),
            "detections": len(found[contestant.key]) / len(scenes),
        }


def groups_of(record: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return the results of all seeds by kind and name."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in record["results"].values():
        groups.setdefault((result["kind"], result["name"]), []).append(result)
    return groups


def table(record: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    rows = []
    for (kind, name), results in groups_of(record).items():
        what = f"slices, {name}" if kind == "slices" else f"whole scene, budget {name}"
        scores = [mean_and_deviation([result[score] for result in results]) for score in ("AP", "AP50")]
        rows.append([what, *scores, f"{statistics.fmean(result['seconds'] for result in results):.2f}"])
    return markdown_table(["way", "AP", "AP50", "seconds a scene"], rows)


def answers(record: dict[str, Any]) -> list[str]:
    """Say for every way of slicing what the best budget does in at most its time."""
    means = {
        key: {name: statistics.fmean(result[name] for result in results) for name in ("AP50", "seconds")}
        for key, results in groups_of(record).items()
    }
    found = []
    for (kind, name), slices in means.items():
        if kind != "slices":
            continue
        fast = {
            key: whole for key, whole in means.items() if key[0] == "whole" and whole["seconds"] <= slices["seconds"]
        }
        start = f"Slices with {name}: AP50 {slices['AP50']:.1f} in {slices['seconds']:.2f} s a scene"
        if not fast:
            found.append(f"{start}; the whole scene takes longer at every budget.")
            continue
        (_, budget), best = max(fast.items(), key=lambda item: item[1]["AP50"])
        found.append(
            f"{start}; the whole scene in at most this time: AP50 {best['AP50']:.1f} in {best['seconds']:.2f} s, "
            f"at the budget {budget}."
        )
    return found


def draw(record: dict[str, Any], path: Path) -> None:
    """Draw AP50 over seconds, a point a way, the seeds as thin points."""
    figure, axis = new_figure(7, 4.6)
    axis.margins(x=0.14, y=0.08)
    for kind, color in COLORS.items():
        named = {name: results for (of, name), results in groups_of(record).items() if of == kind}
        points = [
            (statistics.fmean(r["seconds"] for r in results), statistics.fmean(r["AP50"] for r in results), name)
            for name, results in named.items()
        ]
        for results in named.values():
            axis.plot([r["seconds"] for r in results], [r["AP50"] for r in results], ".", color=color, alpha=0.4, ms=5)
        points.sort()
        label = "slices (SAHI)" if kind == "slices" else "whole scene, by budget"
        axis.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=color, label=label)
        for number, (x, y, name) in enumerate(points):
            place = (6, -11) if number % 2 else (-6, 6)  # in turn, so that close points keep their names apart
            side = "left" if number % 2 else "right"
            axis.annotate(name, (x, y), xytext=place, textcoords="offset points", ha=side, fontsize=8, color=color)
    axis.set_xlabel(f"seconds a scene (CPU time, one thread, {record['machine']})")
    axis.set_ylabel("AP50")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=9)
    save_figure(figure, path, 120)


if __name__ == "__main__":
    run_script(main)
