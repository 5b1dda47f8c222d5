"""The whole of training on a few real tiles: data, model, losses, optimiser, evaluation."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from sparse_detr.model_zoo import get_config_file
from sparse_detr.train import main

SAMPLE = Path(os.environ.get("SPARSE_DETR_SAMPLE") or "datasets/sample")


# For models with one map of stride 16: a shallow transformer alone learns small images. All four tiles are in a batch.
ONE_MAP = [
    *("model.backbone.freeze_at=5", "model.encoder.layers.count=1"),
    *("model.decoder.layers.count=2", "model.heads.decoder_layers=2"),
    # At this size every tile is 176 x 184. With padding in a batch the border features of a tile differ from those of
    # the tile alone, as in the evaluation, and a model that learns by heart may read from them which tile it is.
    *("dataloader.train.mapper.augmentations.max_size=184", "dataloader.test.mapper.augmentations.max_size=184"),
    *("lr_multiplier.warmup_iters=20", "optimizer.weight_decay=0", "optimizer.fused=true"),
]
# So that "no object" is learned as fast as the boxes; with the usual weights every query still says "tree" at the end.
SOFTMAX = ["model.criterion.class_weight=5", "model.criterion.classification.no_object_weight=0.5"]
PNP_RATIOS = [f"model.selector.budget.{key}=0.34" for key in ("min_keep_ratio", "max_keep_ratio", "budget.keep_ratio")]


class Tiles(NamedTuple):
    """Which tiles: how many trees one may hold, and the shortest side of a tree in pixels."""

    boxes: range
    smallest_side: int


SMALL_TREES, LARGE_TREES = Tiles(range(8, 14), 0), Tiles(range(4, 10), 18)  # a cell of stride 16 holds the small ones


class Row(NamedTuple):
    """How a model learns four tiles in as little time as possible."""

    config: str
    tiles: Tiles
    overrides: list[str]


MODELS = {
    "sparse_detr": Row("sparse_detr_mnv2", SMALL_TREES, ["train.max_iter=150", "dataloader.train.total_batch_size=2"]),
    "detr": Row("detr_mnv2", LARGE_TREES, [*ONE_MAP, *SOFTMAX, "train.max_iter=300", "model.queries.num_queries=12"]),
    "pnp_detr": Row(
        "pnp_detr_mnv2",
        LARGE_TREES,
        [*ONE_MAP, *SOFTMAX, *PNP_RATIOS, "train.max_iter=450", "model.queries.num_queries=12"],
    ),
    "conditional_detr": Row(
        "conditional_detr_mnv2",
        LARGE_TREES,
        [*ONE_MAP, "train.max_iter=400", "model.queries.num_queries=50", "model.criterion.matcher.class_weight=0.5"],
    ),
    "anchor_detr": Row(
        "anchor_detr_mnv2",
        LARGE_TREES,
        [*ONE_MAP, "train.max_iter=250", "optimizer.lr=2e-3", "train.clip_grad_norm=null"]
        + ["model.queries.num_patterns=1"],
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not (SAMPLE / "train.json").is_file(), reason="needs the sample data: make sample-data")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", MODELS)
def test_training_on_four_tiles_finds_their_trees_again(model, tmp_path):
    row = MODELS[model]
    annotations = write_tiles(tmp_path / "tiles.json", row.tiles, number=4)
    code = main(
        ["--config-file", get_config_file(f"quick/{row.config}.py")]
        + ["--train-json", str(annotations), "--train-images", str(SAMPLE / "train")]
        + ["--val-json", str(annotations), "--val-images", str(SAMPLE / "train")]
        + ["--output-dir", str(tmp_path / "output")]
        + [f"dataloader.train.mapper.augmentations.{off}" for off in ("flip=none", "crop_range=null", "color_jitter=0")]
        + ["train.eval_period=0", "train.checkpointer.period=1000", *row.overrides]
    )
    assert code == 0
    metrics = (tmp_path / "output" / "metrics.json").read_text().splitlines()
    assert json.loads(metrics[-1])["bbox/AP50"] > 90


def write_tiles(path: Path, tiles: Tiles, *, number: int) -> Path:
    """Write an annotation file with the first `number` tiles of the sample data that `tiles` asks for."""
    coco = json.loads((SAMPLE / "train.json").read_text())
    sides: dict[int, list[float]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        sides[annotation["image_id"]].append(min(annotation["bbox"][2:]))
    fitting = [id_ for id_, found in sides.items() if len(found) in tiles.boxes and min(found) >= tiles.smallest_side]
    ids = set(fitting[:number])
    coco["images"] = [image for image in coco["images"] if image["id"] in ids]
    coco["annotations"] = [annotation for annotation in coco["annotations"] if annotation["image_id"] in ids]
    path.write_text(json.dumps(coco))
    return path
