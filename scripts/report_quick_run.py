"""Print the scores of a training run and the paths of its files, at the end of `make train`."""

import argparse
import json
import sys
from pathlib import Path


def main() -> int:
    """Print AP and paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="output folder of the run")
    parser.add_argument("--pictures", type=Path, required=True, help="folder with the pictures of the demo")
    args = parser.parse_args()
    print(report(args.output, args.pictures))
    return 0


def report(output: Path, pictures: Path) -> str:
    """Return the report as text."""
    metrics = last_evaluation(output / "metrics.json")
    scores = ", ".join(
        f"{name} {metrics[f'bbox/{name}']:.1f}" for name in ("AP", "AP50", "AP75") if f"bbox/{name}" in metrics
    )
    return "\n".join(
        [
            f"COCO AP on the held-out scene: {scores or 'not recorded'}",
            f"  weights   {output / 'model_final.pth'}",
            f"  pictures  {pictures}",
            f"  log       {output / 'log.txt'}, curves: tensorboard --logdir {output}",
        ]
    )


def last_evaluation(path: Path) -> dict[str, float]:
    """Return the last line of Detectron2's metrics file that holds an evaluation; {} if there is none."""
    lines = path.read_text().splitlines() if path.is_file() else []
    evaluations = (metrics for metrics in map(json.loads, reversed(lines)) if "bbox/AP" in metrics)
    return next(evaluations, {})


if __name__ == "__main__":
    sys.exit(main())
