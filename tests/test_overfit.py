"""The whole of training on a few real tiles: data, model, losses, optimiser, evaluation."""

import json
import os
from pathlib import Path

import pytest

from sparse_detr.model_zoo import get_config_file
from sparse_detr.train import main

SAMPLE = Path(os.environ.get("SPARSE_DETR_SAMPLE") or "datasets/sample")


# by model: a quick config, and the overrides with which it learns the tiles in as little time as possible
MODELS = {"sparse_detr": ("sparse_detr_mnv2", ["train.max_iter=150", "dataloader.train.total_batch_size=2"])}


@pytest.mark.slow
@pytest.mark.skipif(not (SAMPLE / "train.json").is_file(), reason="needs the sample data: make sample-data")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("model", MODELS)
def test_training_on_four_tiles_finds_their_trees_again(model, tmp_path):
    config, overrides = MODELS[model]
    annotations = write_tiles(tmp_path / "tiles.json", number=4, boxes=range(8, 14))
    code = main(
        ["--config-file", get_config_file(f"quick/{config}.py")]
        + ["--train-json", str(annotations), "--train-images", str(SAMPLE / "train")]
        + ["--val-json", str(annotations), "--val-images", str(SAMPLE / "train")]
        + ["--output-dir", str(tmp_path / "output")]
        + [f"dataloader.train.mapper.augmentations.{off}" for off in ("flip=none", "crop_range=null", "color_jitter=0")]
        + ["train.eval_period=0", "train.checkpointer.period=1000", *overrides]
    )
    assert code == 0
    metrics = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(metrics[-1])["bbox/AP50"] > 90


def write_tiles(path: Path, *, number: int, boxes: range) -> Path:
    """Write an annotation file with the first `number` tiles of the sample data that hold `boxes` many boxes."""
    coco = json.loads((SAMPLE / "train.json").read_text())
    counts = {image["id"]: 0 for image in coco["images"]}
    for annotation in coco["annotations"]:
        counts[annotation["image_id"]] += 1
    kept = [image for image in coco["images"] if counts[image["id"]] in boxes][:number]
    ids = {image["id"] for image in kept}
    coco["images"] = kept
    coco["annotations"] = [annotation for annotation in coco["annotations"] if annotation["image_id"] in ids]
    path.write_text(json.dumps(coco))
    return path
