"""Train variants of the quick model with several seeds, and write a table of their AP into a README.

    python scripts/measure.py sample --iterations rho10=700 rho30=600 rho100=330 --picture datasets/sample/val/X.png
    python scripts/measure.py blood-cells --iterations rho30=900 dense=580 --seeds 0 1 2 -- --train-json A ...
    python scripts/measure.py blood-cells-family --costs --iterations dense=500 rho30=500 dino=500 focus=500 \
        --seeds 0 1 2 --readme projects/FocusDETR/README.md -- --train-json A ...

    python scripts/measure.py --redraw projects/FocusDETR/results/blood-cells-family.json

The last command draws a plot again from its JSON file. Arguments after `--` go to `train_net.py`. A finished run is not
repeated: its scores go into `results/` beside the README at once, and a later call, on another machine too, goes on
from there. With `--picture`, the detections and tokens of the first seed's models in that image and their training logs
go there too. `--costs` adds FLOPs, times (all models in turn on the same images), the AP50 after non-maximum
suppression (the loss by duplicates) and a plot of AP50 over FLOPs.
"""

import argparse
import contextlib
import io
import itertools
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from detectron2.data import MetadataCatalog
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparse_detr.analysis.cost import gigaflops, inference, seconds_in_turn, training_step
from sparse_detr.analysis.tables import fill_readme, markdown_table, mean_and_deviation
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.config.own_data import OWN_DATA_KEYS, use_own_data
from sparse_detr.config.run import Run, make_run
from sparse_detr.errors import run_script
from sparse_detr.evaluation.duplicates import suppress_duplicates
from sparse_detr.studies.training import final_scores
from sparse_detr.train import add_arguments

ROOT = Path(__file__).resolve().parents[1]
SPARSE, DENSE = "configs/quick/sparse_detr_mnv2.py", "configs/quick/deformable_detr_topk_mnv2.py"
FOCUS, FLAT = "configs/quick/focus_detr_mnv2.py", "model.selector.budget.schedule.shares=[1.0,1.0]"
FAST_SAMPLING = "optimizer.params.sampling_multiplier=1.0"
NORMS_STAY = "optimizer.params.norm_weight_decay=0.0"
TRAIN_AUGMENTATIONS, TEST_AUGMENTATIONS = (f"dataloader.{split}.mapper.augmentations" for split in ("train", "test"))
AT_480 = [f"{TRAIN_AUGMENTATIONS}.short_sizes=[480]", f"{TEST_AUGMENTATIONS}.short_size=480"]
AT_480 += [f"{augmentations}.max_size=480" for augmentations in (TRAIN_AUGMENTATIONS, TEST_AUGMENTATIONS)]
NO_ENCODER_LOSS = "model.heads.encoder_layers=0"
VARIANTS = {
    "rho10": ("Sparse DETR, rho 10 %", SPARSE, ["model.selector.budget.keep_ratio=0.1"]),
    "rho30": ("Sparse DETR, rho 30 %", SPARSE, ["model.selector.budget.keep_ratio=0.3"]),
    "rho100": ("Sparse DETR, rho 100 %", SPARSE, ["model.selector.budget.keep_ratio=1.0"]),
    "rho50": ("Sparse DETR, rho 50 %", SPARSE, ["model.selector.budget.keep_ratio=0.5"]),
    "elastic": ("Sparse DETR, elastic from 10 % to all", "configs/quick/elastic_sparse_detr_mnv2.py", []),
    "dense": ("Deformable DETR, two-stage, dense", DENSE, []),
    "dense_480": ("Deformable DETR, two-stage, dense, at 480 pixels", DENSE, AT_480),
    "efficient": ("Efficient DETR", "configs/quick/efficient_detr_mnv2.py", []),
    "dino": ("DINO", "configs/quick/dino_mnv2.py", []),
    "sparse_dino": ("Sparse DETR on DINO, rho 30 %", "configs/quick/sparse_dino_mnv2.py", []),
    "focus": ("Focus-DETR, 50 % to 10 %", FOCUS, []),
    "focus_flat30": ("Focus-DETR, 30 % in both layers", FOCUS, ["model.selector.budget.keep_ratio=0.3", FLAT]),
    "focus_flat50": ("Focus-DETR, 50 % in both layers", FOCUS, ["model.selector.budget.keep_ratio=0.5", FLAT]),
    "lite": (
        "Lite Deformable DETR, two-stage, H2L1-(2+1)x1",
        "configs/quick/lite_deformable_detr_mnv2.py",
        [],
    ),
    "lite_dino": ("Lite DINO, H2L1-(2+1)x1", "configs/quick/lite_dino_mnv2.py", []),
    "dino_own": ("DINO, optimiser of its paper", "configs/quick/dino_mnv2.py", [FAST_SAMPLING]),
    "focus_own": ("Focus-DETR, optimiser of its paper", FOCUS, [FAST_SAMPLING, NORMS_STAY]),
    "stride4_levels": (
        "Sparse DETR, strides 4 to 32, shares of levels",
        "configs/quick/sparse_detr_stride4_mnv2.py",
        [],
    ),
    # the relatives, under equal supervision: no auxiliary loss of the encoder
    "plain_dense": ("Deformable DETR, two-stage, dense", DENSE, [NO_ENCODER_LOSS]),
    "plain_rho10": ("Sparse DETR, rho 10 %", SPARSE, ["model.selector.budget.keep_ratio=0.1", NO_ENCODER_LOSS]),
    "plain_rho30": ("Sparse DETR, rho 30 %", SPARSE, ["model.selector.budget.keep_ratio=0.3", NO_ENCODER_LOSS]),
    "plain_focus": ("Focus-DETR, 50 % to 10 %", FOCUS, [FAST_SAMPLING, NORMS_STAY]),
    "plain_dino": ("DINO", "configs/quick/dino_mnv2.py", [FAST_SAMPLING]),
    "plain_lite": ("Lite DETR, H2L1-(1+1)x1", "configs/quick/lite_deformable_detr_mnv2.py", [NO_ENCODER_LOSS]),
    "plain_pnp": ("PnP-DETR, a third polled", "configs/quick/pnp_detr_mnv2.py", []),
}
SCORES = ("AP", "AP50", "AP75")
ROUNDS = 24  # timed images and batches of every model, after one for warm-up


def main() -> int:
    """Run the missing trainings, then write JSON and table; with `--redraw`, draw the plot of a JSON file again."""
    own, passed_on = split_arguments(sys.argv[1:])
    if own[:1] == ["--redraw"]:
        for path in own[1:]:
            redraw(Path(path))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="name of the table, of its marker in the README and of its JSON file")
    parser.add_argument("--iterations", nargs="+", type=variant_and_iterations, required=True, metavar="VARIANT=N")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, default=Path("output/measure"))
    parser.add_argument("--readme", type=Path, default=ROOT / "projects/SparseDETR/README.md")
    parser.add_argument("--costs", action="store_true", help="also count FLOPs, measure times and plot")
    parser.add_argument("--picture", type=Path, help="image on which the models' detections and tokens are drawn")
    args = parser.parse_args(own)
    folder = args.readme.parent / "results"
    folder.mkdir(exist_ok=True)
    record = Record(folder / f"{args.name}.json", passed_on)
    results = {
        variant: scores_of_seeds(args, record, variant, iterations, passed_on)
        for variant, iterations in args.iterations
    }
    costs = measure_costs(list(results), passed_on) if args.costs else {}
    text = table_with_costs(results, costs) if args.costs else table(results)
    print(text)
    record.write(costs)
    if args.costs:
        plot_costs(folder / f"{args.name}.png", results, costs)
        text += f"\n\n![AP50 over encoder GFLOPs](results/{args.name}.png)"
    if args.picture is not None:
        text += "".join(illustrate(args, variant, folder) for variant, _ in args.iterations)
    fill_readme(args.readme, args.name, text)
    return 0


def redraw(path: Path) -> None:
    """Draw the plot of a JSON file, beside it."""
    record = json.loads(path.read_text())
    plot_costs(path.with_suffix(".png"), {name: record["results"][name] for name in record["costs"]}, record["costs"])


def split_arguments(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after the first `--`."""
    if "--" not in arguments:
        return arguments, []
    position = arguments.index("--")
    return arguments[:position], arguments[position + 1 :]


def variant_and_iterations(text: str) -> tuple[str, int]:
    """Read `rho10=700` as ("rho10", 700)."""
    variant, _, iterations = text.partition("=")
    if variant not in VARIANTS or not iterations.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not VARIANT=ITERATIONS with a variant of {', '.join(VARIANTS)}")
    return variant, int(iterations)


class Record:
    """The scores of a table in a JSON file, which grows with every run.

    Args:
        path: the file; it need not exist.
        passed_on: arguments of the trainings; scores of trainings with other overrides are not taken over.
    """

    def __init__(self, path: Path, passed_on: list[str]):
        self.path, self.overrides = path, [argument for argument in passed_on if "=" in argument]
        old = json.loads(path.read_text()) if path.is_file() else {}
        self.results: dict[str, list[dict[str, float]]] = {}
        if old.get("overrides") == self.overrides:
            self.results = {name: [run for run in runs if "seed" in run] for name, runs in old["results"].items()}

    def run(self, variant: str, seed: int, iterations: int) -> dict[str, float]:
        """Return the scores of an earlier run; {} if there is none."""
        same = [run for run in self.results.get(variant, []) if run["seed"] == seed]
        return next((run for run in same if abs(run["iterations"] - iterations) <= 1), {})

    def add(self, variant: str, run: dict[str, float]) -> None:
        """Add the scores of a run, and write the file."""
        others = [other for other in self.results.get(variant, []) if other["seed"] != run["seed"]]
        self.results[variant] = sorted([*others, run], key=lambda run: run["seed"])
        self.write({})

    def write(self, costs: dict[str, dict[str, float]]) -> None:
        """Write all measurements as JSON, those of earlier calls with other seeds and variants too."""
        record: dict[str, Any] = {
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
            "overrides": self.overrides,
            "results": self.results,
        }
        if costs:
            record["costs"] = costs
        self.path.write_text(json.dumps(record, indent=1) + "\n")


def scores_of_seeds(
    args: argparse.Namespace, record: Record, variant: str, iterations: int, passed_on: list[str]
) -> list[dict[str, float]]:
    """Return the scores of one variant for every seed, after the trainings that are missing."""
    runs = []
    for seed in args.seeds:
        folder = args.output / args.name / f"{variant}_seed{seed}"
        run = record.run(variant, seed, iterations)
        if not run and not final_scores(folder):
            train(folder, variant, seed, iterations, passed_on)
        if not run:
            suppressed = suppressed_score(folder, run_of(variant, passed_on).evaluation_sets[0].names[0])
            run = {"seed": seed, **final_scores(folder), "AP50_suppressed": suppressed}
            record.add(variant, run)
        runs.append(run)
    return runs


def train(folder: Path, variant: str, seed: int, iterations: int, passed_on: list[str]) -> None:
    """Train one variant with one seed in a process of its own; go on from the last checkpoint in the folder."""
    _, config, overrides = VARIANTS[variant]
    print(f"==> {variant}, seed {seed}: {folder}", flush=True)
    command = [sys.executable, "train_net.py", "--config-file", config, "--output-dir", str(folder.resolve())]
    length = [f"train.max_iter={iterations}", f"train.eval_period={iterations}", f"train.seed={seed}"]
    subprocess.run([*command, "--resume", *passed_on, *overrides, *length], cwd=ROOT, check=True)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return a Markdown table of mean scores, with the standard deviation if there are several seeds."""
    rows = []
    for variant, runs in results.items():
        speed = statistics.median(run["seconds_per_iteration"] for run in runs)
        cells = [VARIANTS[variant][0], f"{runs[0]['iterations']:.0f}", f"{speed:.2f}"]
        rows.append([*cells, *(mean_and_deviation([run[score] for run in runs]) for score in SCORES)])
    return markdown_table(["", "iterations", "s / iteration", *SCORES], rows)


def measure_costs(variants: list[str], passed_on: list[str]) -> dict[str, dict[str, float]]:
    """Measure the untrained model of every variant: FLOPs on the first test image, times on the same images in turn.

    Each variant gets the images at the size of its own config.
    """
    runs = {variant: run_of(variant, passed_on) for variant in variants}
    models = {variant: build_detector(run.config) for variant, run in runs.items()}
    singles = {name: (batch[0] for batch in run.evaluation_sets[0].build_loader()) for name, run in runs.items()}
    images = first_of_each(singles)
    batches = first_of_each({name: run.build_train_loader() for name, run in runs.items()})
    detection = seconds_in_turn({name: on_own(name, inference(model)) for name, model in models.items()}, images)
    training = seconds_in_turn({name: on_own(name, training_step(model)) for name, model in models.items()}, batches)
    return {
        name: {
            "mean_keep_ratio": model.eval().mean_keep_ratio,
            **{f"{part}_gigaflops": value for part, value in gigaflops(model, images[0][name]["image"]).items()},
            "seconds_per_image": detection[name],
            "seconds_per_training_step": training[name],
        }
        for name, model in models.items()
    }


def first_of_each(loaders: dict[str, Iterable[Any]]) -> list[dict[str, Any]]:
    """Return the first inputs of all variants, by variant; the first of them is for the warm-up."""
    names = list(loaders)
    inputs = zip(*loaders.values(), strict=False)
    return [dict(zip(names, of_all, strict=True)) for of_all in itertools.islice(inputs, 1 + ROUNDS)]


def on_own(name: str, action: Callable[[Any], object]) -> Callable[[dict[str, Any]], object]:
    """Return an action that takes the input of its variant from those of all."""
    return lambda inputs: action(inputs[name])


def suppressed_score(folder: Path, dataset: str) -> float:
    """Return the AP50 of a run after non-maximum suppression of the detections that its evaluation saved."""
    saved = folder / "inference" / "coco_instances_results.json"
    return ap50(COCO(MetadataCatalog.get(dataset).json_file), suppress_duplicates(json.loads(saved.read_text())))


def ap50(truth: COCO, detections: list[dict[str, Any]]) -> float:
    """Return the AP at an IoU of 0.5 in percent."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[1])


def run_of(variant: str, passed_on: list[str]) -> Run:
    """Return the training of a variant, as `train_net.py` would do it with these arguments."""
    _, config, overrides = VARIANTS[variant]
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(["--config-file", str(ROOT / config), *passed_on, *overrides])
    cfg = load_config(args.config_file, args.opts)
    use_own_data(cfg, {key: getattr(args, key) for key in OWN_DATA_KEYS}, args.opts)
    return make_run(cfg)


def table_with_costs(results: dict[str, list[dict[str, float]]], costs: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table of the costs of every variant and its scores over the seeds."""
    head = ["", "tokens kept", "encoder GFLOPs", "all GFLOPs", "ms / image", "ms / training step"]
    head += ["AP", "AP50", "AP50 after NMS"]
    rows = []
    for variant, runs in results.items():
        cost = costs[variant]
        cells = [
            VARIANTS[variant][0],
            f"{cost['mean_keep_ratio']:.0%}",
            f"{cost['encoder_gigaflops']:.2f}",
            f"{cost['total_gigaflops']:.2f}",
            f"{1000 * cost['seconds_per_image']:.0f}",
            f"{1000 * cost['seconds_per_training_step']:.0f}",
            *(mean_and_deviation([run[score] for run in runs]) for score in ("AP", "AP50", "AP50_suppressed")),
        ]
        rows.append(cells)
    return markdown_table(head, rows)


def plot_costs(path: Path, results: dict[str, list[dict[str, float]]], costs: dict[str, dict[str, float]]) -> None:
    """Plot AP50 over encoder GFLOPs, with mean and standard deviation over the seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    points, spreads, texts = [], [], []
    for variant, runs in results.items():
        scores = [run["AP50"] for run in runs]
        points.append((costs[variant]["encoder_gigaflops"], statistics.mean(scores)))
        spreads.append(statistics.stdev(scores) if len(scores) > 1 else 0.0)
        line, *_ = axes.errorbar(*points[-1], yerr=spreads[-1], fmt="o", capsize=3)
        texts.append(axes.text(*points[-1], VARIANTS[variant][0], fontsize=8, color=line.get_color(), in_layout=False))
    axes.margins(x=0.2, y=0.12)
    axes.set(xlabel="encoder GFLOPs of an image, selection included", ylabel="AP50")
    axes.grid(alpha=0.3)
    place_texts(axes, texts, points, spreads)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def place_texts(axes: Axes, texts: list[Text], points: list[tuple[float, float]], spreads: list[float]) -> None:
    """Move each text beside its point, where it hides no other text, point or bar and stays in the frame."""
    axes.figure.draw_without_rendering()  # sets the layout, and so all positions in pixels
    pixel = axes.figure.dpi / 72
    to_pixels, to_data = axes.transData.transform, axes.transData.inverted().transform
    centers = [to_pixels(point) for point in points]
    reach = [
        to_pixels((x, y + spread))[1] - to_pixels((x, y))[1] for (x, y), spread in zip(points, spreads, strict=True)
    ]
    marks = [
        (x - 5 * pixel, y - up - 5 * pixel, x + 5 * pixel, y + up + 5 * pixel)
        for (x, y), up in zip(centers, reach, strict=True)
    ]
    sizes = [(text.get_window_extent().width, text.get_window_extent().height) for text in texts]
    frame = axes.get_window_extent().extents
    for text, corner in zip(texts, place_labels(centers, sizes, marks, frame), strict=True):
        text.set(position=to_data(corner), va="bottom")


Box = tuple[float, float, float, float]


def place_labels(
    points: Sequence[Sequence[float]],
    sizes: Sequence[tuple[float, float]],
    marks: Sequence[Box],
    frame: Sequence[float],
) -> list[tuple[float, float]]:
    """Return the lower left corners of labels near their points, inside the frame, that hide no mark or other label.

    Each label in turn takes the nearest free place; if there is none, the one that hides least.

    Args:
        points: (x, y) of the labelled points.
        sizes: (width, height) of the labels.
        marks: boxes (x0, y0, x1, y1) that no label should hide.
        frame: box (x0, y0, x1, y1) for the labels.
    """
    taken = list(marks)
    corners = []
    for (x, y), (width, height) in zip(points, sizes, strict=True):
        places = [(left, bottom, left + width, bottom + height) for left, bottom in _places(x, y, width, height)]
        hidden = [sum(_common(place, other) for other in taken) + _outside(place, frame) for place in places]
        best = places[hidden.index(min(hidden))]
        taken.append(best)
        corners.append(best[:2])
    return corners


def _places(x: float, y: float, width: float, height: float) -> list[tuple[float, float]]:
    """Return places for a label as lower left corners: beside the point first, then by distance."""
    gap = height / 2
    ups = [step * gap - height / 2 for step in range(-20, 21)]
    asides = [-width / 2 + step * width / 4 for step in range(-6, 7)]
    beside = [(x + 2 * gap, y - height / 2), (x - 2 * gap - width, y - height / 2)]
    round_about = [(x + aside, y + up) for up in ups for aside in asides]

    def distance(corner: tuple[float, float]) -> float:
        left, bottom = corner
        return math.dist((x, y), (min(max(x, left), left + width), min(max(y, bottom), bottom + height)))

    return beside + sorted(round_about, key=distance)


def _common(one: Box, other: Box) -> float:
    """Return the area of the overlap of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _outside(place: Box, frame: Sequence[float]) -> float:
    """Return the area of a box outside the frame."""
    return (place[2] - place[0]) * (place[3] - place[1]) - _common(place, (frame[0], frame[1], frame[2], frame[3]))


def illustrate(args: argparse.Namespace, variant: str, folder: Path) -> str:
    """Draw the detections of the first seed's model, copy its log, and return Markdown that shows both."""
    run = args.output / args.name / f"{variant}_seed{args.seeds[0]}"
    name = f"{args.name}_{variant}"
    (folder / f"{name}.log").write_text(progress((run / "log.txt").read_text()))
    with tempfile.TemporaryDirectory() as drawn:
        demo = [sys.executable, "-m", "sparse_detr.cli", "demo", "--config-file", str(run / "config.yaml")]
        files = ["--weights", str(run / "model_final.pth"), "--input", str(args.picture), "--output", drawn]
        subprocess.run([*demo, *files], check=True)
        overview = Image.open(next(Path(drawn).glob("*_overview.png"))).convert("RGB")
    overview.thumbnail((1300, 1300))
    overview.save(folder / f"{name}.jpg", quality=85)
    title = VARIANTS[variant][0]
    return f"\n\n{title} ([log](results/{name}.log)):\n\n![{title}](results/{name}.jpg)"


def progress(log: str) -> str:
    """Return the lines of a log with losses and scores, without lines that may name folders of a machine."""
    kept = [line for line in log.splitlines() if "utils.events" in line or line.startswith(("|", "│"))]
    return "\n".join(kept) + "\n"


if __name__ == "__main__":
    run_script(main)
