"""Limits of a config: boxes that its model can learn, and detections that it returns."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts
from detectron2.structures import Boxes, Instances

from sparse_detr.config import load_config
from sparse_detr.config.limits import Limits, evaluation_limit, limits_of
from sparse_detr.config.own_data import use_own_data
from sparse_detr.config.run import make_run
from sparse_detr.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("config", "overrides", "limits"),
    [
        ("DINO/configs/dino_r50_4scale_12ep.py", [], Limits(num_queries=900, num_detections=300)),
        ("DINO/configs/dino_r50_4scale_12ep.yaml", [], Limits(num_queries=900, num_detections=300)),
        ("DeformableDETR/configs/deformable_detr_r50.py", [], Limits(num_queries=300, num_detections=100)),
        ("DeformableDETR/configs/deformable_detr_r50.yaml", [], Limits(num_queries=300, num_detections=100)),
        ("DABDETR/configs/dab_detr_r50_3patterns.py", [], Limits(num_queries=900, num_detections=300)),
        (
            *("DABDETR/configs/dab_detr_r50.yaml", ["MODEL.DETR.NUM_PATTERNS", "3"]),
            Limits(num_queries=900, num_detections=300),
        ),
    ],
)
def test_limits_are_those_of_the_model_for_both_kinds(config, overrides, limits):
    assert limits_of(load_config(f"{ROOT}/projects/{config}", overrides)) == limits


def test_limits_follow_overrides():
    quick = load_config(f"{ROOT}/configs/quick/sparse_detr_mnv2.py", ["model.queries.num_queries=7"])
    assert limits_of(quick) == Limits(num_queries=7, num_detections=100)
    yaml = f"{ROOT}/projects/DeformableDETR/configs/deformable_detr_r50.yaml"
    assert limits_of(load_config(yaml, ["TEST.DETECTIONS_PER_IMAGE", "300"])).num_detections == 300
    assert limits_of(load_config(yaml, ["MODEL.DETR.NUM_DETECTIONS", "200"])).num_detections == 200


def test_two_numbers_of_detections_are_refused():
    cfg = load_config(f"{ROOT}/projects/DeformableDETR/configs/deformable_detr_r50.yaml")
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.DETR.NUM_DETECTIONS = 300, 200
    with pytest.raises(UserError, match="TEST.DETECTIONS_PER_IMAGE is 300 and MODEL.DETR.NUM_DETECTIONS is 200"):
        limits_of(cfg)


def test_limits_of_other_models_are_unknown(tmp_path):
    (tmp_path / "x.yaml").write_text("MODEL:\n  META_ARCHITECTURE: GeneralizedRCNN\n")
    assert limits_of(load_config(str(tmp_path / "x.yaml"))) == Limits(num_queries=None, num_detections=None)


@pytest.fixture
def crowded_data():
    """Return a data set with 160 boxes in one image, 150 of them of one class, and 9 crowds."""
    boxes = [{"category_id": int(i >= 150), "iscrowd": 0} for i in range(160)]
    crowds = [{"category_id": 0, "iscrowd": 1}] * 9
    yield from registered("crowded_data", [{"annotations": []}, {"annotations": boxes + crowds}])


@pytest.fixture
def sparse_data():
    yield from registered("sparse_data", [{"annotations": [{"category_id": 0}] * 100}])


def registered(name, records):
    DatasetCatalog.register(name, lambda: records)
    yield name
    DatasetCatalog.remove(name)


def quick(*overrides):
    return load_config(f"{ROOT}/configs/quick/sparse_detr_mnv2.py", overrides)


def deformable(*overrides):
    return load_config(f"{ROOT}/projects/DeformableDETR/configs/deformable_detr_r50.yaml", overrides)


@pytest.mark.parametrize("config", [quick, deformable])
def test_data_with_at_most_100_boxes_of_a_class_are_evaluated_as_in_coco(sparse_data, config, caplog):
    assert evaluation_limit(sparse_data, config()) == 100
    assert not caplog.records


def test_more_detections_of_a_model_do_not_change_coco_scores(sparse_data):
    assert evaluation_limit(sparse_data, quick("model.postprocess.num_detections=300")) == 100


@pytest.mark.parametrize("config", [quick, deformable])
def test_the_evaluation_counts_all_boxes_of_an_image_and_warns_if_the_model_returns_fewer(crowded_data, config, caplog):
    assert evaluation_limit(crowded_data, config()) == 150
    assert "has 160 boxes, but the model gives at most 100 detections" in caplog.text
    assert "150 are counted" in caplog.text


def test_detections_per_image_of_yaml_are_the_limit_of_the_evaluation(crowded_data, caplog):
    assert evaluation_limit(crowded_data, deformable("TEST.DETECTIONS_PER_IMAGE", "300")) == 300
    assert not caplog.records
    assert evaluation_limit(crowded_data, deformable("TEST.DETECTIONS_PER_IMAGE", "50")) == 100
    assert "gives at most 50 detections; write TEST.DETECTIONS_PER_IMAGE 160" in caplog.text
    assert "counts at most 100 detections of a class; write TEST.DETECTIONS_PER_IMAGE 150" in caplog.text


def test_a_limit_of_the_evaluator_that_is_too_low_is_kept_with_a_warning(crowded_data, caplog):
    cfg = quick("dataloader.evaluator.max_dets_per_image=100", "model.postprocess.num_detections=200")
    assert evaluation_limit(crowded_data, cfg) == 100
    assert "write dataloader.evaluator.max_dets_per_image=150" in caplog.text
    assert "model.postprocess" not in caplog.text


@pytest.mark.parametrize("suffix", [".yaml", ".py"])
def test_perfect_detections_of_300_boxes_score_100(tmp_path, suffix):
    boxes = [[20 * (k % 20), 20 * (k // 20), 15, 15] for k in range(300)]
    annotations = [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": box, "area": 225, "iscrowd": 0}
        for k, box in enumerate(boxes)
    ]
    images = [{"id": 1, "file_name": "1.png", "width": 400, "height": 400}]
    file = tmp_path / "many.json"
    categories = [{"id": 1, "name": "tree"}]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    (tmp_path / "1.png").touch()
    cfg = load_config(f"{ROOT}/projects/DeformableDETR/configs/deformable_detr_r50{suffix}")
    own = {"train_json": file, "train_images": tmp_path, "val_json": file, "val_images": tmp_path}
    use_own_data(cfg, {key: str(path) for key, path in own.items()})
    evaluation_set = make_run(cfg).evaluation_sets[0]
    get_detection_dataset_dicts(evaluation_set.names)  # makes the names of the classes known, as a loader does
    evaluator = evaluation_set.build_evaluator()
    evaluator._output_dir = None
    evaluator.reset()
    corners = torch.tensor([[x, y, x + width, y + height] for x, y, width, height in boxes])
    found = Instances((400, 400), pred_boxes=Boxes(corners))
    found.scores, found.pred_classes = torch.linspace(1, 0.5, 300), torch.zeros(300, dtype=torch.long)
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert "max_dets_per_image" not in make_run(cfg).config_text
