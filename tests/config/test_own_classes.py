"""Own data set the classes of a model, in both kinds of config."""

import json

import pytest

from sparse_detr.config import load_config
from sparse_detr.config.own_data import use_own_data
from sparse_detr.config.run import make_run
from tests.config.mutations import LAZY, YACS


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (LAZY, ["model.num_classes=91", "model.class_channels=[1,2,90]", "model.num_classes=2"]),
        (YACS, ["MODEL.DETR.CLASS_CHANNELS", "[1,2,90]"]),
    ],
    ids=["lazy", "yacs"],
)
def test_own_data_replace_class_channels_of_other_classes(path, overrides, tmp_path):
    images = [{"id": 1, "file_name": "1.png", "width": 40, "height": 40}]
    boxes = [{"id": i, "image_id": 1, "category_id": i, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0} for i in (1, 2)]
    categories = [{"id": i, "name": f"class{i}"} for i in (1, 2)]
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    (tmp_path / "1.png").touch()
    cfg = load_config(str(path), overrides)
    use_own_data(cfg, {"train_json": str(file), "train_images": str(tmp_path)}, overrides)
    model = cfg.MODEL.DETR if path == YACS else cfg.model
    assert (model.get("class_channels"), model.get("CLASS_CHANNELS")) == (None, None)
    assert make_run(cfg).settings.max_iter > 0
