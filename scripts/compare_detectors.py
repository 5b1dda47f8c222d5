"""Time of detectors beside their published AP: ours plain and optimised, RetinaNet, Faster R-CNN and RF-DETR.

    python scripts/compare_detectors.py                                    measure what is missing, print the table
    python scripts/compare_detectors.py --detectors rho10 retinanet --sizes 480x640 --rounds 1
    python scripts/compare_detectors.py --report --readme docs/benchmark.md     table of what was measured, no more

Protocol: one thread, float32, CPU time of that thread, one image, from pixels in memory to detections; random weights.
In a round every detector gets the same photo of `datasets/sample`, resized to exactly the size; RF-DETR gets it at its
own size. The order rotates. The first round of a process warms up and does not count. Every round is saved, so that
the command can be stopped and goes on where it was. AP is not measured here: it is what the authors published, with
the image size that they tested at.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image
from torch import nn
from tqdm import tqdm

from sparse_detr.analysis.machine import allocator_name, cpu_model, num_cpus, use_clean_allocator
from sparse_detr.analysis.tables import fill_readme, markdown_table
from sparse_detr.benchmark.contestants import Contestant, our_contestants
from sparse_detr.benchmark.images import ImageStream, Input
from sparse_detr.benchmark.machine import CpuUse
from sparse_detr.benchmark.rivals import Reference, detectron2_rival, rf_detr_rival
from sparse_detr.benchmark.timing import rotated
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.errors import UserError, run_script
from sparse_detr.files import make_folder, write_text_atomically

ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ROOT / "datasets" / "sample"
FULL = "800x1333"
"""Shortest and longest side of the test images of all published AP but RF-DETR's."""


@dataclass(frozen=True)
class Detector:
    """A detector with a ResNet-50, or an RF-DETR, and its published AP on COCO val2017.

    Args:
        title: for tables and the picture.
        config: of ours: a file in `projects`; of Detectron2: a name in its model zoo; "" for RF-DETR.
        ap: box AP.
        tested_at: size of the test images, "800x1333" for shortest side x largest longest side.
        source: where the AP stands.
        kind: "ours", "detectron2" or "rf-detr".
    """

    title: str
    config: str
    ap: float
    tested_at: str
    source: str
    kind: str = "ours"


SPARSE, ZOO, RF = "Sparse DETR's README, 50 epochs", "Detectron2's model zoo, 3x", "RF-DETR's README"
DETECTORS = {
    "dense": Detector(
        "Deformable DETR",
        "DeformableDETR/configs/deformable_detr_r50.py",
        44.5,
        FULL,
        "Deformable DETR's README, 50 epochs",
    ),
    "topk": Detector("Deformable DETR, top-k", "SparseDETR/configs/deformable_detr_topk_r50.py", 46.0, FULL, SPARSE),
    "rho10": Detector("Sparse DETR, 10 %", "SparseDETR/configs/sparse_detr_r50_rho10.py", 45.3, FULL, SPARSE),
    "rho30": Detector("Sparse DETR, 30 %", "SparseDETR/configs/sparse_detr_r50_rho30.py", 46.0, FULL, SPARSE),
    "dino": Detector("DINO", "DINO/configs/dino_r50_4scale_36ep.py", 50.9, FULL, "DINO's README, 36 epochs"),
    "focus": Detector(
        "Focus-DETR", "FocusDETR/configs/focus_detr_r50_36ep.py", 50.4, FULL, "Focus-DETR's README, 36 epochs"
    ),
    "retinanet": Detector("RetinaNet", "COCO-Detection/retinanet_R_50_FPN_3x.yaml", 37.9, FULL, ZOO, "detectron2"),
    "faster": Detector("Faster R-CNN", "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml", 40.2, FULL, ZOO, "detectron2"),
    "rf-detr-nano": Detector("RF-DETR Nano", "", 48.4, "384x384", RF, "rf-detr"),
    "rf-detr-small": Detector("RF-DETR Small", "", 53.0, "512x512", RF, "rf-detr"),
    "rf-detr-medium": Detector("RF-DETR Medium", "", 54.7, "576x576", RF, "rf-detr"),
}
PLAIN, FP32 = "plain", "fp32"
FORMS = {
    "ours": {PLAIN: "as it is", FP32: "optimised", "bf16": "optimised, bfloat16"},
    "detectron2": {PLAIN: "as it is"},
    "rf-detr": {PLAIN: "as it is", "traced": "traced by its package"},
}
"""Kind -> form -> words. `plain` and `fp32` of ours are measured if no other is asked for."""
RATIOS = [("rho10", rival) for rival in ("retinanet", "faster", "dense")]
LABEL_LEFT = ("rho10", "rho30", "focus")
"""Detectors with their name to the left of the fastest form; the others have it to the right of the slowest."""
COLORS = {"ours": "#2f6690", "detectron2": "#8c8a3c", "rf-detr": "#b5485d"}
MARKERS = {"ours": "o", "detectron2": "s", "rf-detr": "^"}

Cell = tuple[str, str]
"""A detector's name and its form."""
Rounds = list[dict[str, float]]
"""The rounds of an image size: `name form` -> CPU milliseconds."""


def main() -> int:
    """Measure, print, draw."""
    args = parse_arguments()
    if args.allocator == "clean" and not args.report:
        use_clean_allocator()
    path = args.output / f"detectors_{args.allocator}.json"
    results = read_results(path, must_match=not args.report)
    if not args.report:
        torch.set_num_threads(1)
        make_folder(args.output)
        measure_all(args, results, lambda: write_text_atomically(path, json.dumps(results, indent=1) + "\n"))
    if not any(results["rounds"].values()):
        raise UserError(f"{path} has no measured round; run the command without --report")
    picture = path.with_suffix(".png")
    draw(results, picture)
    text = report(results)
    write_text_atomically(path.with_suffix(".md"), f"{text}\n\n{image_line(picture, path.parent)}\n")
    print(text)
    if args.readme:
        fill_readme(args.readme, "detectors", f"{text}\n\n{image_line(picture, args.readme.parent)}")
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results"), help="folder of JSON, table and picture")
    parser.add_argument("--sizes", nargs="+", default=["480x640", "800x1066"], metavar="HxW")
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=DETECTORS, metavar="NAME")
    parser.add_argument(
        "--forms", nargs="+", default=[PLAIN, FP32], choices=[PLAIN, FP32, "bf16", "traced"], help="plain fp32"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--allocator", choices=["system", "clean"], default="system")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--readme", type=Path, help="file with the lines `<!-- table detectors -->`")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return {
        "cpu": cpu_model(),
        "cpus": num_cpus(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "allocator": allocator_name(),
    }


def read_results(path: Path, *, must_match: bool) -> dict[str, Any]:
    """Return what was measured before, or an empty record.

    Raises:
        UserError: it was measured on another machine, and more shall be measured.
    """
    if not path.is_file():
        return {"machine": machine(), "load": [], "rounds": {}}
    results = json.loads(path.read_text(encoding="utf-8"))
    if must_match and results["machine"] != machine():
        raise UserError(f"{path} is of another machine, {results['machine']}; move it away, or give another --output")
    return results


# Measurement


def measure_all(args: argparse.Namespace, results: dict[str, Any], save: Callable[[], None]) -> None:
    """Measure the missing rounds of all sizes."""
    cells = [(name, form) for name in args.detectors for form in FORMS[DETECTORS[name].kind] if form in args.forms]
    missing = {size: missing_rounds(results["rounds"].get(size, []), cells, args.rounds) for size in args.sizes}
    needed = {cell: None for found in missing.values() for cell in found}
    if not needed:
        return
    contestants = build(list(needed))
    for size, found in missing.items():
        if found:
            measure(size, {cell: contestants[cell] for cell in found}, found, results, save)


def key(cell: Cell) -> str:
    """Return the name of a cell in the file of results."""
    return " ".join(cell)


def missing_rounds(rounds: Rounds, cells: list[Cell], wanted: int) -> dict[Cell, int]:
    """Return the number of rounds that every cell lacks, without those that lack none."""
    lacks = {cell: wanted - sum(key(cell) in found for found in rounds) for cell in cells}
    return {cell: number for cell, number in lacks.items() if number > 0}


def build(cells: list[Cell]) -> dict[Cell, Contestant]:
    """Return the detectors, with random weights."""
    found: dict[Cell, Contestant] = {}
    for name in tqdm(dict.fromkeys(name for name, _ in cells), desc="building", unit="detector"):
        forms = [form for other, form in cells if other == name]
        found |= {(name, form): contestant for form, contestant in build_one(name, forms).items()}
    return found


def build_one(name: str, forms: list[str]) -> dict[str, Contestant]:
    """Return the asked forms of a detector."""
    torch.manual_seed(0)
    detector = DETECTORS[name]
    reference = Reference("", nn.Identity(), "RGB", False, "cpu", [])
    if detector.kind == "detectron2":
        return {PLAIN: detectron2_rival(detector.config, reference)}
    if detector.kind == "rf-detr":
        return {form: rf_detr_rival(name, reference, traced=form == "traced") for form in forms}
    model = build_detector(load_config(str(ROOT / "projects" / detector.config)), device="cpu").eval()
    precisions = [form for form in forms if form != PLAIN]
    made = our_contestants(add_noise(model), name, is_trained=False, precisions=precisions)
    return {form: made[0] if form == PLAIN else made[1 + precisions.index(form)] for form in forms}


def add_noise(model: nn.Module) -> nn.Module:
    """Change all weights a little: with offsets of zero, sampling would read memory in order and be too fast."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def photos(size: str) -> ImageStream:
    """Return the sample's photos as RGB pixels (3, H, W) of exactly one size."""
    height, width = map(int, size.split("x"))
    files = sorted(str(path) for split in ("train", "val") for path in (PHOTOS / split).glob("*.png"))
    if not files:
        raise UserError(f"{PHOTOS} has no images; run the script in a checkout of the repository")

    def load(record: dict[str, Any]) -> Input:
        pixels = np.asarray(Image.open(record["file_name"]).convert("RGB").resize((width, height))).copy()
        return {"image": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), "height": height, "width": width}

    return ImageStream(files, load)


def measure(
    size: str,
    contestants: Mapping[Cell, Contestant],
    missing: Mapping[Cell, int],
    results: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Measure the missing rounds of one image size, all detectors in turn on the same photo."""
    rounds: Rounds = results["rounds"].setdefault(size, [])
    images, before = photos(size), CpuUse.now()
    total = sum(1 + number for number in missing.values())
    with tqdm(total=total, desc=size, unit="image") as progress:
        for turn in range(1 + max(missing.values())):
            batch = images.batch(1)
            found = {}
            for cell in rotated([cell for cell in contestants if turn <= missing[cell]], turn):
                progress.set_postfix_str(key(cell), refresh=False)
                prepared = contestants[cell].prepare(batch)
                start = time.thread_time()
                contestants[cell].detect(prepared)
                found[key(cell)] = round(1e3 * (time.thread_time() - start), 2)
                progress.update()
            if turn:
                rounds.append(found)
                results["load"].append(round(CpuUse.now().others_since(before), 3))
                save()
            before = CpuUse.now()


# Report


def report(results: dict[str, Any]) -> str:
    """Return the table, the ratios and the caption of everything that was measured."""
    rounds = {size: found for size, found in results["rounds"].items() if found}
    head = ["", "published AP", "tested at", "source", *(f"ms at {size}" for size in rounds)]
    rows = []
    for name, detector in DETECTORS.items():
        for form, words in FORMS[detector.kind].items():
            times = [spread(milliseconds(found, (name, form))) for found in rounds.values()]
            if any(times):
                title = detector.title if form == PLAIN else f"{detector.title}, {words}"
                rows.append([title, f"{detector.ap:.1f}", detector.tested_at, detector.source, *times])
    return "\n\n".join(filter(None, [markdown_table(head, rows), ratios_text(rounds), caption(results)]))


def milliseconds(rounds: Rounds, cell: Cell) -> list[float]:
    """Return the times of a detector, one a round in which it ran."""
    return [found[key(cell)] for found in rounds if key(cell) in found]


def ratios_text(rounds: Mapping[str, Rounds]) -> str:
    """Return the list of how many times faster ours is, by size."""
    lines = []
    for size, found in rounds.items():
        for name, rival in RATIOS:
            for form, words in FORMS["ours"].items():
                if form != PLAIN and (quotients := paired(found, (rival, PLAIN), (name, form))):
                    title = f"{DETECTORS[name].title}, {words}, against {DETECTORS[rival].title} as it is"
                    lines.append(f"- {size}: {title}: {spread(quotients, digits=2)}x")
    return "\n".join(lines)


def paired(rounds: Rounds, slow: Cell, fast: Cell) -> list[float]:
    """Return the ratio of two detectors' times in every round that has both."""
    return [found[key(slow)] / found[key(fast)] for found in rounds if key(slow) in found and key(fast) in found]


def spread(values: list[float], digits: int = 0) -> str:
    """Return the median, with the quartiles if there are enough values; "" for no value."""
    if len(values) < 4:
        return f"{statistics.median(values):.{digits}f}" if values else ""
    low, middle, high = (f"{value:.{digits}f}" for value in statistics.quantiles(values, n=4))
    return f"{middle} ({low} to {high})"


def caption(results: dict[str, Any]) -> str:
    """Return how the numbers were taken, and what they do not say."""
    facts, load = results["machine"], results["load"]
    used = f"{statistics.median(load):.2f}" if load else "an unknown number of"
    setting = f"{facts['cpu']} ({facts['instructions']}), PyTorch {facts['torch']}, allocator: {facts['allocator']}"
    return (
        f"Times: {setting}; one thread, float32 where nothing else is said, CPU time, one image; medians with "
        "quartiles of rounds in which all detectors ran in turn on the same photo; other processes used "
        f"{used} of {facts['cpus']} CPUs. Weights are random, so RetinaNet and Faster R-CNN suppress fewer boxes than "
        "trained models do. RF-DETR runs at its own size in every column.\n\n"
        "AP is what the authors published for COCO val2017, not measured here; all but RF-DETR were tested with the "
        "shortest side at 800 and the longest at most 1333 pixels. **At 480x640 they are less accurate than their "
        "published AP**: compare AP with the time at 800x1066, the size of a photo of 480x640 in that test. RF-DETR "
        "has a DINOv2 backbone and was pre-trained on Objects365; the others have a ResNet-50 of ImageNet."
    )


def image_line(picture: Path, folder: Path) -> str:
    """Return the Markdown of the picture, for a file in a folder."""
    return f"![Time beside published AP]({os.path.relpath(picture, folder).replace(os.sep, '/')})"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture: for every image size, published AP over time; a line joins a model and its optimised form."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    rounds = {size: found for size, found in results["rounds"].items() if found}
    width = 6.5 * len(rounds)
    figure, axes = pyplot.subplots(
        1, len(rounds), figsize=(width, 5.6), layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for axis, (size, found) in zip(axes[0], rounds.items(), strict=True):
        for name, detector in DETECTORS.items():
            _draw_detector(axis, found, name, same_size=tested_so(detector, size))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.margins(x=0.28, y=0.08)
        axis.set_xlabel(f"CPU milliseconds an image of {size} (RF-DETR: its own size), one thread")
        axis.grid(alpha=0.25)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0][0].set_ylabel("published AP, COCO val2017")
    figure.suptitle(
        "Filled: AP was published for about this image size. Hollow: AP was published for 800x1333, and is lower at "
        "this size.\nSmall marker: optimised form. Random weights; AP is not measured here.",
        fontsize=9,
        x=0.01,
        ha="left",
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def tested_so(detector: Detector, size: str) -> bool:
    """Tell whether AP was published for images of about the size that is timed."""
    return detector.kind == "rf-detr" or min(map(int, size.split("x"))) == min(map(int, detector.tested_at.split("x")))


def _draw_detector(axis: Any, rounds: Rounds, name: str, *, same_size: bool) -> None:
    detector = DETECTORS[name]
    found = {form: milliseconds(rounds, (name, form)) for form in FORMS[detector.kind]}
    times = {form: statistics.median(values) for form, values in found.items() if values}
    if not times:
        return
    color = COLORS[detector.kind]
    axis.plot(list(times.values()), [detector.ap] * len(times), color=color, linewidth=1, zorder=1)
    for form, middle in times.items():
        axis.scatter(
            middle,
            detector.ap,
            s=70 if form == PLAIN else 28,
            marker=MARKERS[detector.kind],
            facecolor=color if same_size else "white",
            edgecolor=color,
            zorder=2,
        )
    left = name in LABEL_LEFT
    axis.annotate(
        detector.title,
        (min(times.values()) if left else max(times.values()), detector.ap),
        xytext=(-7 if left else 7, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=8,
        color=color,
    )


if __name__ == "__main__":
    run_script(main)
