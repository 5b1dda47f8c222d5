"""Measure how faithful kept tokens are: drop those under detections, and compare with as many random ones.

    python scripts/measure_faithfulness.py "Sparse DETR, rho 30 %=output/rho30_seed*" --test-json test.json \
        --test-images images --record docs/results/faithfulness.json --readme docs/explain.md

Every model is a name and a pattern of training folders with `config.yaml` and `model_final.pth`, one a seed; each is
measured trained and with random weights. An image that is in the record is not measured again, so a stopped
measurement goes on where it was. A record of other images or settings is refused.
"""

import argparse
import glob
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sparse_detr import Predictor
from sparse_detr.analysis.tables import fill_readme, markdown_table
from sparse_detr.config.load import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.data.annotations import read_coco_file
from sparse_detr.errors import UserError, run_script
from sparse_detr.explain.faithfulness import Explainer, list_targets
from sparse_detr.explain.interventions import ImageRuns
from sparse_detr.explain.sanity import rank_correlation
from sparse_detr.files import write_text_atomically

SHARES = [0.25, 0.5, 0.75, 1.0]
KNOBS = ("detections", "draws")
TABLE = "faithfulness"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the record lacks, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDERS")
    parser.add_argument("--test-json", required=True, metavar="FILE")
    parser.add_argument("--test-images", required=True, type=Path, metavar="DIR")
    parser.add_argument("--record", required=True, type=Path, metavar="FILE", help="JSON file that grows")
    parser.add_argument("--readme", type=Path, metavar="FILE", help=f"file with the lines of the table {TABLE}")
    parser.add_argument("--detections", type=int, default=3, metavar="N", help="of an image, the best ones (3)")
    parser.add_argument("--draws", type=int, default=2, metavar="N", help="of random tokens (2)")
    parser.add_argument("--max-images", type=int, metavar="N")
    args = parser.parse_args(argv)
    setting = {"images": Path(args.test_json).name, "shares": SHARES, **{key: getattr(args, key) for key in KNOBS}}
    record = Record(args.record, setting)
    files = [image["file_name"] for image in read_coco_file(args.test_json).sound_images.values()][: args.max_images]
    for model in args.models:
        name, folders = seeds_of(model)
        for folder in folders:
            measure(record, name, folder, files, args)
    text = table(record.content)
    print(text)
    if args.readme is not None:
        fill_readme(args.readme, TABLE, text)
    return 0


class Record:
    """All numbers, in a JSON file: model -> folder -> `trained` or `random` -> image -> list of detections.

    Args:
        path: the file; it need not exist.
        setting: what all numbers of a file have in common.

    Raises:
        UserError: the file has another setting.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, setting
        record = json.loads(path.read_text()) if path.is_file() else {"setting": setting, "models": {}}
        if record["setting"] != setting:
            raise UserError(f"{path} is of {record['setting']}, not of {setting}; give another --record, or remove it")
        self.content: dict[str, Any] = record["models"]

    def images(self, *keys: str) -> dict[str, Any]:
        """Return the numbers of a model, to be added to."""
        found = self.content
        for key in keys:
            found = found.setdefault(key, {})
        return found

    def write(self) -> None:
        """Write the file."""
        write_text_atomically(self.path, json.dumps({"setting": self.setting, "models": self.content}, indent=1) + "\n")


def seeds_of(model: str) -> tuple[str, list[Path]]:
    """Return the name and the folders of `NAME=PATTERN`.

    Raises:
        UserError: there is no name or no folder.
    """
    name, _, pattern = model.partition("=")
    folders = [Path(path) for path in sorted(glob.glob(pattern)) if Path(path, "model_final.pth").is_file()]
    if not pattern or not folders:
        raise UserError(f"{model!r} names no trained model; give NAME=FOLDERS, each with config.yaml, model_final.pth")
    return name, folders


def measure(record: Record, name: str, folder: Path, files: Sequence[str], args: argparse.Namespace) -> None:
    """Measure one training, and the same model with random weights."""
    predictor = Predictor(folder / "config.yaml", folder / "model_final.pth")
    torch.manual_seed(0)
    random_model = build_detector(load_config(str(folder / "config.yaml"))).eval()
    kinds = {"trained": predictor.model, "random": random_model}
    done = {kind: record.images(name, folder.name, kind) for kind in kinds}
    for file in tqdm(files, desc=folder.name, unit="image"):
        if all(file in images for images in done.values()):
            continue
        item = predictor.preprocess(args.test_images / file)
        runs = {kind: ImageRuns(model, item) for kind, model in kinds.items()}
        for kind, images in done.items():
            images[file] = numbers_of(runs[kind], args)
        correlation = rank_correlation(runs["trained"], runs["random"])[1]
        record.images(name, folder.name, "correlation")[file] = correlation
        record.write()


def numbers_of(runs: ImageRuns, args: argparse.Namespace) -> list[dict[str, float]]:
    """Return what dropping the tokens under each of the best detections does."""
    explainer = Explainer(runs, shares=SHARES, draws=args.draws)
    rows = []
    for target in list_targets(runs.prediction, 0.0, most=args.detections):
        found = explainer.drop_box(target)
        if found is not None and target.score:
            rows.append(
                {
                    "tokens": found.explained.counts[-1],
                    "score": target.score,
                    "dropped": found.explained.scores[-1] / target.score,
                    "random_dropped": found.random.scores[-1] / target.score,
                    "faithfulness": found.faithfulness,
                }
            )
    return [{key: round(float(value), 5) for key, value in row.items()} for row in rows]


def table(content: dict[str, Any]) -> str:
    """Return the Markdown table, one row a model: means over images and detections, then over seeds."""
    head = [
        "model",
        "tokens under a box",
        "score",
        "score without them",
        "without random ones",
        "faithfulness",
        "random weights: score",
        "score lost",
        "faithfulness",
        "rank",
    ]
    return markdown_table(head, [_row(name, seeds) for name, seeds in content.items()])


def _row(name: str, seeds: dict[str, Any]) -> list[str]:
    trained, random = ([_means(seed[kind]) for seed in seeds.values()] for kind in ("trained", "random"))
    ranks = [
        statistics.fmean(value for value in seed["correlation"].values() if value is not None)
        for seed in seeds.values()
    ]
    return [
        name,
        _spread([seed["tokens"] for seed in trained], 0),
        _spread([seed["score"] for seed in trained], 2),
        _spread([seed["score_without"] for seed in trained], 2),
        _spread([seed["score_without_random"] for seed in trained], 2),
        _spread([seed["faithfulness"] for seed in trained], 2),
        _spread([seed["score"] for seed in random], 3),
        _spread([seed["score"] - seed["score_without"] for seed in random], 3),
        _spread([seed["faithfulness"] for seed in random], 2),
        _spread(ranks, 2),
    ]


def _means(images: dict[str, Any]) -> dict[str, float]:
    rows = [row for rows in images.values() for row in rows]
    means = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
    for name, key in (("score_without", "dropped"), ("score_without_random", "random_dropped")):
        means[name] = statistics.fmean(row["score"] * row[key] for row in rows)
    return means


def _spread(values: Sequence[float], digits: int) -> str:
    """Return the mean, and the lowest and highest where they differ."""
    values = [round(value, digits) + 0.0 for value in values]  # no negative zero
    several = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if min(values) < max(values) else ""
    return f"{statistics.fmean(values):.{digits}f}{several}"


if __name__ == "__main__":
    run_script(main)
