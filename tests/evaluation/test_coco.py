"""COCO's scores of boxes: those of pycocotools to the last digit, with or without hotcoco."""

import contextlib
import copy
import io
import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2 import evaluation
from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sparse_detr.errors import UserError
from sparse_detr.evaluation import COCOEvaluator
from sparse_detr.evaluation.coco import score_boxes
from sparse_detr.evaluation.truth import NOTE, TruthFile, check_truth
from tests.evaluation.hard_cases import make_case

LIMITS = [1, 10, 100]
HARD = {
    "plain": {},
    "crowds": {"crowds": 0.5},
    "ignored": {"ignored": 0.3},
    "tied scores": {"tied_scores": True},
    "tied overlaps on thresholds": {"grid": True, "tied_scores": True},
    "one class": {"classes": 1},
    "many classes, most without boxes": {"classes": 150},
    "no boxes": {"boxes": 0},
    "few detections": {"detections": 1},
    "more detections than count": {"images": 3, "classes": 1, "boxes": 40, "detections": 400},
}


def pycocotools_scores(truth, detections, limits=LIMITS, image_ids=None):
    """The scores as Detectron2 asks pycocotools for them."""
    coco = COCO()
    coco.dataset = copy.deepcopy(truth)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        kind = COCOeval if limits[2] == 100 else COCOevalMaxDets
        scores = kind(coco, coco.loadRes(copy.deepcopy(detections)), "bbox")
        scores.params.maxDets = limits
        if image_ids is not None:
            scores.params.imgIds = image_ids
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    return scores


def assert_same_scores(truth, detections, **arguments):
    expected = pycocotools_scores(truth, detections, *arguments.values())
    scores = score_boxes(truth, detections, arguments.get("limits", LIMITS), arguments.get("image_ids"))
    for kind in ("precision", "recall"):
        assert np.array_equal(scores.eval[kind], expected.eval[kind]), kind
    assert scores.stats.tolist() == expected.stats.tolist()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", HARD)
def test_scores_equal_those_of_pycocotools_to_the_last_digit(name, seed):
    truth, detections = make_case(seed, **HARD[name])
    assert detections
    assert_same_scores(truth, detections)


def test_scores_with_another_limit_of_detections_equal_those_of_pycocotools():
    truth, detections = make_case(3, **HARD["more detections than count"])
    assert_same_scores(truth, detections, limits=[1, 10, 300])
    assert not np.array_equal(
        score_boxes(truth, detections, [1, 10, 300]).stats, score_boxes(truth, detections, LIMITS).stats
    )


def test_scores_of_some_images_equal_those_of_pycocotools():
    truth, detections = make_case(4)
    some = [image["id"] for image in truth["images"][:5]]
    assert_same_scores(truth, detections, limits=LIMITS, image_ids=some)


def test_a_perfect_detection_scores_one_and_a_missed_box_halves_the_recall():
    """By hand: one of two boxes is found, so precision is 1 up to recall 0.5 and 0 beyond: 51 of 101 recalls."""
    boxes = [{"id": i, "image_id": 1, "category_id": 7, "bbox": [50 * i, 0, 40, 40], "area": 1600} for i in (1, 2)]
    truth = {"images": [{"id": 1}], "annotations": boxes, "categories": [{"id": 7, "name": "box"}]}
    found = [{"image_id": 1, "category_id": 7, "bbox": [50, 0, 40, 40], "score": 0.3}]
    stats = score_boxes(truth, found, LIMITS).stats
    assert stats[0] == pytest.approx(51 / 101)
    assert stats[8] == 0.5
    assert stats[3] == -1  # no box is small


@pytest.fixture
def data_set(tmp_path):
    """A registered data set whose ids of classes have gaps, with the predictions of a model."""
    truth, results = make_case(5, classes=3, detections=20)
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    ids = [category["id"] for category in truth["categories"]]
    name = f"evaluated {tmp_path}"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=[category["name"] for category in truth["categories"]],
        thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(ids)},
    )
    yield name, predictions(truth, results, ids)
    MetadataCatalog.pop(name)


def predictions(truth, results, class_ids):
    """The inputs and outputs of a model that found `results`."""
    for image in truth["images"]:
        mine = [result for result in results if result["image_id"] == image["id"]]
        corners = torch.tensor([[*box[:2], box[0] + box[2], box[1] + box[3]] for box in (one["bbox"] for one in mine)])
        yield (
            {"image_id": image["id"]},
            Instances(
                (480, 640),
                pred_boxes=Boxes(corners.reshape(-1, 4)),
                scores=torch.tensor([one["score"] for one in mine]),
                pred_classes=torch.tensor([class_ids.index(one["category_id"]) for one in mine], dtype=torch.long),
            ),
        )


def evaluate(kind, name, pairs, folder, **arguments):
    evaluator = kind(name, tasks=("bbox",), distributed=False, output_dir=str(folder), **arguments)
    evaluator.reset()
    for image, instances in pairs:
        evaluator.process([image], [{"instances": instances}])
    with contextlib.redirect_stdout(io.StringIO()):
        return evaluator.evaluate()


@pytest.mark.parametrize("arguments", [{}, {"max_dets_per_image": 300}])
def test_the_evaluator_returns_and_saves_what_that_of_detectron2_does(data_set, tmp_path, arguments):
    """Also the AP of every class."""
    name, pairs = data_set
    pairs = list(pairs)
    expected = evaluate(evaluation.COCOEvaluator, name, pairs, tmp_path / "theirs", use_fast_impl=False, **arguments)
    scores = evaluate(COCOEvaluator, name, pairs, tmp_path / "ours", **arguments)
    assert scores == expected
    assert {key for key in scores["bbox"] if key.startswith("AP-")} == {
        f"AP-{label}" for label in MetadataCatalog.get(name).thing_classes
    }
    saved = [(tmp_path / side / "coco_instances_results.json").read_bytes() for side in ("ours", "theirs")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("with_hotcoco", [True, False])
def test_beside_the_detections_lies_which_true_boxes_they_belong_to(data_set, tmp_path, monkeypatch, with_hotcoco):
    name, pairs = data_set
    if not with_hotcoco:
        monkeypatch.setitem(sys.modules, "hotcoco", None)
    evaluate(COCOEvaluator, name, pairs, tmp_path / "out")
    truth, other = TruthFile(name, str(tmp_path / "truth.json"), ""), tmp_path / "other.json"
    copied = replace(truth, path=str(other))
    other.write_bytes((tmp_path / "truth.json").read_bytes())
    for same in (truth, copied):
        check_truth(tmp_path / "out", same, remedy="evaluate again")
    other.write_bytes(other.read_bytes() + b" ")
    with pytest.raises(UserError, match=r"belong to the data evaluated .*/truth\.json, but .*/other\.json has other"):
        check_truth(tmp_path / "out", copied, remedy="evaluate again")
    (tmp_path / "out" / NOTE).write_text("{}")
    with pytest.raises(UserError, match=f"{NOTE} cannot be read .*; evaluate again"):
        check_truth(tmp_path / "out", truth, remedy="evaluate again")


def test_without_hotcoco_the_scores_are_the_same_and_one_line_says_so(data_set, tmp_path, monkeypatch, caplog):
    name, pairs = data_set
    pairs = list(pairs)
    expected = evaluate(COCOEvaluator, name, pairs, tmp_path)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    with caplog.at_level(logging.INFO, "sparse_detr"):
        assert evaluate(COCOEvaluator, name, pairs, tmp_path) == expected
    said = [record.getMessage() for record in caplog.records if "pip install" in record.getMessage()]
    assert len(said) == 1
    assert "pip install hotcoco" in said[0]


ODD = {
    "needs whole numbers as ids of images": ("images", "image {}".format),
    "but images have the id -": ("images", lambda number: -number),
    "but categories have the id -": ("categories", lambda number: -number),
    "but annotations have the id -": ("annotations", lambda number: -1 - number),
    "an annotation has the id 0": ("annotations", lambda number: number),
}


@pytest.mark.parametrize("odd", ODD)
def test_data_that_hotcoco_scores_otherwise_are_left_to_detectron2(odd, tmp_path, caplog):
    truth, results = make_case(6, first_id=0)
    part, renamed = ODD[odd]
    field = {"images": "image_id", "categories": "category_id"}.get(part)
    for item in truth[part]:
        item["id"] = renamed(item["id"])
    for item in (*truth["annotations"], *results):
        if field:
            item[field] = renamed(item[field])
    truth["categories"].sort(key=lambda item: item["id"])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    name = f"evaluated {tmp_path}"
    ids = [category["id"] for category in truth["categories"]]
    MetadataCatalog.get(name).set(
        json_file=str(tmp_path / "truth.json"), thing_dataset_id_to_contiguous_id={n: i for i, n in enumerate(ids)}
    )
    with caplog.at_level(logging.INFO, "sparse_detr"):
        scores = evaluate(COCOEvaluator, name, predictions(truth, results, ids), tmp_path)
    MetadataCatalog.pop(name)
    assert scores["bbox"]["AP50"] == pytest.approx(100 * pycocotools_scores(truth, results).stats[1])
    assert odd in caplog.text


def test_no_detections_give_nan_as_from_detectron2(data_set, tmp_path):
    name, pairs = data_set
    nothing = [(image, instances[:0]) for image, instances in pairs]
    scores = evaluate(COCOEvaluator, name, nothing, tmp_path)
    assert all(np.isnan(score) for score in scores["bbox"].values())
    assert scores["bbox"].keys() >= {"AP", "AP50"}


def test_a_class_that_the_data_set_lacks_is_an_error(data_set, tmp_path):
    name, pairs = data_set
    wrong = [(image, instances) for image, instances in pairs if len(instances)][:1]
    wrong[0][1].pred_classes[0] = 3
    with pytest.raises(UserError, match="has class 3, but the data set has 3 classes"):
        evaluate(COCOEvaluator, name, wrong, tmp_path)
