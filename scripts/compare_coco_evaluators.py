"""Compare evaluators of COCO's scores on generated detections: time, and equality with pycocotools.

    pip install hotcoco faster-coco-eval vernier    # those that are missing are named
    python scripts/compare_coco_evaluators.py --images 5000 --detections 100 --readme docs/evaluation.md

Every evaluator runs in a process of its own with one thread; the process's CPU seconds count, from the content of the
COCO file and a list of results to the twelve scores.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# Name -> the module that it is imported as.
EVALUATORS = {
    "pycocotools": "pycocotools",
    "hotcoco": "hotcoco",
    "faster-coco-eval": "faster_coco_eval",
    "vernier": "vernier",
}


def main() -> None:
    """Run every evaluator that is installed and print a table."""
    args = parse()
    if args.one:
        print(json.dumps(measure(args.one, *(json.loads(path.read_text()) for path in args.data))))
        return
    from sparse_detr.analysis.tables import fill_readme  # it imports torch, which the measured processes shall not

    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch, name) for name in ("truth.json", "detections.json")]
        for path, content in zip(paths, make_data(args.images, args.detections), strict=True):
            path.write_text(json.dumps(content))
        results = {name: in_fresh_process(name, paths) for name in EVALUATORS if is_installed(name)}
    text = f"{args.images} images, {args.images * args.detections} detections, one thread:\n\n{table(results)}"
    print(text)
    if args.readme:
        fill_readme(args.readme, "evaluators", text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100, help="of an image, as the model returns them")
    parser.add_argument("--readme", type=Path, help="file whose marks `table evaluators` are filled")
    parser.add_argument("--one", choices=EVALUATORS, help=argparse.SUPPRESS)
    parser.add_argument("--data", nargs=2, type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_data(images: int, detections: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a COCO file like val2017 in its numbers (80 classes, 7 boxes an image) and detections near its boxes."""
    generator = np.random.default_rng(0)
    annotations, results = [], []
    for image in range(1, images + 1):
        count = generator.integers(1, 14)
        corners, sizes = generator.random((count, 2)) * 400, 4 + generator.random((count, 2)) * 200
        boxes, classes = np.concatenate([corners, sizes], 1), generator.integers(1, 81, count)
        for box, category in zip(boxes.tolist(), classes.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(generator.random() < 0.02),
                }
            )
        near = generator.integers(0, count, detections)
        moved = (boxes[near] * (1 + 0.15 * generator.normal(size=(detections, 4)))).clip(0.1)
        other = generator.integers(1, 81, detections)
        labels = np.where(generator.random(detections) < 0.5, classes[near], other)
        scores = generator.random(detections).astype(np.float32)
        results += [
            {"image_id": image, "category_id": label, "bbox": box, "score": score}
            for label, box, score in zip(labels.tolist(), moved.tolist(), scores.tolist(), strict=True)
        ]
    truth = {
        "images": [{"id": image, "width": 640, "height": 640} for image in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, 81)],
        "info": {},
    }
    return truth, results


def is_installed(name: str) -> bool:
    try:
        importlib.import_module(EVALUATORS[name])
    except ImportError as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return False
    return True


def in_fresh_process(name: str, data: list[Path]) -> dict[str, Any]:
    one_thread = {"RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--one", name, "--data", *map(str, data)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **one_thread})
    return json.loads(done.stdout.splitlines()[-1])


def measure(name: str, truth: dict[str, Any], detections: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the CPU seconds and the scores of an evaluator."""
    importlib.import_module(EVALUATORS[name])
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        stats = SCORE[name](truth, detections)
    return {"seconds": time.process_time() - start, "stats": list(map(float, stats))}


def with_pycocotools_interface(coco: Any, evaluator: Any, truth: dict[str, Any], detections: list) -> Any:
    ground_truth = coco()
    ground_truth.dataset = truth
    ground_truth.createIndex()
    evaluation = evaluator(ground_truth, ground_truth.loadRes(detections), "bbox")
    for step in ("evaluate", "accumulate", "summarize"):
        getattr(evaluation, step)()
    return evaluation.stats[:12]


def score_pycocotools(truth: dict[str, Any], detections: list) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return with_pycocotools_interface(COCO, COCOeval, truth, detections)


def score_faster(truth: dict[str, Any], detections: list) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    return with_pycocotools_interface(COCO, COCOeval_faster, truth, detections)


def score_vernier(truth: dict[str, Any], detections: list) -> Any:
    from pycocotools.coco import COCO
    from vernier import COCOeval

    return with_pycocotools_interface(COCO, COCOeval, truth, detections)


def score_hotcoco(truth: dict[str, Any], detections: list) -> Any:
    from hotcoco import COCO, COCOeval

    ground_truth = COCO(truth)
    evaluation = COCOeval(ground_truth, ground_truth.load_res(detections), "bbox")
    evaluation.run()
    return evaluation.stats


SCORE = {
    "pycocotools": score_pycocotools,
    "hotcoco": score_hotcoco,
    "faster-coco-eval": score_faster,
    "vernier": score_vernier,
}


def table(results: dict[str, dict[str, Any]]) -> str:
    from sparse_detr.analysis.tables import markdown_table

    expected = results["pycocotools"]["stats"]
    rows = (
        [name, f"{one['seconds']:.2f}", f"{np.abs(np.subtract(one['stats'], expected)).max():.0e}"]
        for name, one in results.items()
    )
    return markdown_table(["", "CPU seconds", "largest difference of the twelve scores"], rows)


if __name__ == "__main__":
    main()
