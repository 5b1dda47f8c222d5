"""Compare `sparse-detr predict` with a plain loop over `Predictor`, on images of mixed sizes.

    python scripts/measure_predict.py --config-file CONFIG --weights WEIGHTS --images datasets/sample/val \
        --readme docs/predict.md

Images of several sizes are cut out of those of the folder and written as JPEG. Both ways read the same files, detect
with the same model and threshold, and write one COCO file. They run in turn, in small parts, so that a busy machine
slows both; wall times and CPU times of all parts are summed.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from sparse_detr import Predictor
from sparse_detr.analysis.machine import cpu_model
from sparse_detr.analysis.tables import fill_readme, markdown_table
from sparse_detr.data.any_image import read_any_image
from sparse_detr.errors import UserError, run_script
from sparse_detr.predict.detect import detect_pictures, readers_of
from sparse_detr.predict.formats import write_coco
from sparse_detr.predict.job import Job
from sparse_detr.predict.sources import find_inputs

SIZES = ((640, 480), (480, 640), (640, 427), (512, 512), (800, 600))
"""Width and height of the images."""
THRESHOLD = 0.3
Times = tuple[float, float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of images to cut from")
    parser.add_argument("--count", type=int, default=500, metavar="N", help="images (500)")
    parser.add_argument("--part", type=int, default=50, metavar="N", help="images that each way does in turn (50)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="of predict (1)")
    parser.add_argument("--threads", type=int, metavar="N", help="of PyTorch")
    parser.add_argument("--optimize", action="store_true", help="the inference form, in both")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="Markdown file with the block `predict`")
    args = parser.parse_args(argv)
    if not 1 <= args.part <= args.count:
        raise UserError(f"--part {args.part} does not fit --count {args.count}; give 1 to {args.count}")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    predictor = Predictor(args.config_file, args.weights, device="cpu", optimize=args.optimize)
    with tempfile.TemporaryDirectory() as folder:
        files = make_images(args.images, Path(folder, "images"), args.count)
        text = table(compare(predictor, files, Path(folder), args.part, args.batch_size), args)
    print(text)
    if args.readme is not None:
        fill_readme(args.readme, "predict", text)
    return 0


def make_images(source: str, folder: Path, count: int) -> list[str]:
    """Write images of mixed sizes, each cut from a random place of a random image, and return their paths."""
    folder.mkdir()
    chosen = random.Random(0)
    names = find_inputs([source])
    originals = [Image.fromarray(read_any_image(path)) for path in names.read(0, len(names))]
    files = []
    for number in range(count):
        original, (width, height) = chosen.choice(originals), chosen.choice(SIZES)
        part = original.crop(_random_part(original.size, width / height, chosen))
        files.append(str(folder / f"{number:05d}.jpg"))
        part.resize((width, height), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def _random_part(size: tuple[int, int], proportion: float, chosen: random.Random) -> tuple[int, int, int, int]:
    """Return a random box (left, top, right, bottom) of a proportion (width / height), most of an image."""
    share = chosen.uniform(0.7, 1.0)
    width = int(min(size[0], size[1] * proportion) * share)
    height = int(width / proportion)
    left, top = chosen.randint(0, size[0] - width), chosen.randint(0, max(size[1] - height, 0))
    return left, top, left + width, top + height


def compare(
    predictor: Predictor, files: Sequence[str], folder: Path, part: int, batch_size: int
) -> dict[str, list[Times]]:
    """Return wall and CPU seconds of every part of both ways, which take turns in being the first."""
    ways = {"loop": lambda files, out: loop(predictor, files, out)}
    ways["predict"] = lambda files, out: predict(predictor, files, out, batch_size)
    times: dict[str, list[Times]] = {name: [] for name in ways}
    for name, way in ways.items():
        way(files[:part], folder / f"warm_{name}")
    for number, start in enumerate(tqdm(range(0, len(files), part), unit="part", desc="detecting")):
        for name in sorted(ways, reverse=bool(number % 2)):
            run = ways[name]
            times[name].append(timed(lambda: run(files[start : start + part], folder / f"{name}{number}")))  # noqa: B023
    return times


def timed(run: Callable[[], object]) -> Times:
    """Return wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def loop(predictor: Predictor, files: Sequence[str], output: Path) -> None:
    """Detect as a user's script does: one image after another."""
    rows: list[dict[str, Any]] = []
    for number, file in enumerate(files):
        found = predictor(file, score_threshold=THRESHOLD)
        for box, score, label in zip(
            found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist(), strict=True
        ):
            x0, y0, x1, y1 = box
            bbox = [x0, y0, x1 - x0, y1 - y0]
            rows.append({"image_id": number + 1, "category_id": label + 1, "bbox": bbox, "score": score})
    output.mkdir()
    (output / "detections.json").write_text(json.dumps(rows))


def predict(predictor: Predictor, files: Sequence[str], output: Path, batch_size: int) -> None:
    """Detect as `sparse-detr predict` does."""
    inputs = find_inputs(files)
    job = Job(output, inputs.names(), {}, predictor.class_names, shard_size=len(files))
    pictures = zip(range(len(files)), job.names, inputs.read(0, len(files)), strict=True)
    options = {"readers": readers_of(predictor.model.device), "score_threshold": THRESHOLD}
    found = detect_pictures(predictor, pictures, batch_size=batch_size, **options)
    job.write(0, sorted(found, key=lambda one: one.number))
    write_coco(job, output / "detections.json", {})


def table(times: dict[str, list[Times]], args: argparse.Namespace) -> str:
    """Return the table, with the median of the ratios of the parts."""
    rows = []
    for name, label in (("loop", "a loop over `Predictor`"), ("predict", "`sparse-detr predict`")):
        wall, cpu = (sum(one[i] for one in times[name]) for i in (0, 1))
        rows.append([label, f"{wall:.1f}", f"{args.count / wall:.2f}", f"{cpu:.1f}"])
    pairs = list(zip(times["loop"], times["predict"], strict=True))
    ratios = [statistics.median(one[i] / other[i] for one, other in pairs) for i in (0, 1)]
    head = [f"{args.count} JPEG images of {len(SIZES)} sizes", "seconds", "images / s", "CPU seconds"]
    return (
        f"{markdown_table(head, rows)}\n\nMedian ratio over {len(pairs)} parts in turn: {ratios[0]:.2f}x in wall time, "
        f"{ratios[1]:.2f}x in CPU time ({cpu_model()}, {torch.get_num_threads()} threads, batches of up to "
        f"{args.batch_size}{', inference form' if args.optimize else ''})."
    )


if __name__ == "__main__":
    run_script(main)
