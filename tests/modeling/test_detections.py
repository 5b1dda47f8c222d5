"""Detections from the predictions of queries, by hand."""

import pytest
import torch

from sparse_detr.modeling.detector import TopKDetections
from sparse_detr.structures import PredictionGroup
from tests.modeling.tiny import build, picture


def detect(logits, boxes, size=(100, 200), *, valid=None, num_detections=100):
    group = PredictionGroup("decoder_5", "", torch.tensor([logits]), torch.tensor([boxes]), valid)
    return TopKDetections(num_detections=num_detections)(group, [size])[0]


def test_the_best_pairs_of_query_and_class_are_detected_also_of_one_query():
    boxes = [[0.5, 0.5, 0.2, 0.4], [0.25, 0.25, 0.5, 0.5]]
    found = detect([[2.0, 1.0, -3.0], [0.0, -1.0, 1.5]], boxes, num_detections=4)
    assert found.pred_classes.tolist() == [0, 2, 1, 0]
    assert found.scores.tolist() == pytest.approx(torch.tensor([2.0, 1.5, 1.0, 0.0]).sigmoid().tolist())
    first, second = [80, 30, 120, 70], [0, 0, 100, 50]
    assert found.pred_boxes.tensor.tolist() == [pytest.approx(box) for box in (first, second, first, second)]


def test_with_fewer_pairs_than_detections_all_are_returned():
    assert len(detect([[0.0, 1.0]], [[0.5, 0.5, 0.1, 0.1]])) == 2


def test_queries_that_fill_the_batch_are_not_detected():
    found = detect([[9.0], [1.0]], [[0.5, 0.5, 0.1, 0.1]] * 2, valid=torch.tensor([[False, True]]))
    assert found.scores.tolist() == pytest.approx([torch.tensor(1.0).sigmoid().item()])


def test_a_model_with_more_logits_than_classes_reports_classes_of_the_data_set():
    """Classes 0, 1, 2 of the data set have logits 4, 1, 3; the other logits are never reported."""
    model = build("one_stage", class_channels=[4, 1, 3]).eval()
    inputs = [picture(64, 64)]
    output = model.outputs(inputs)
    logits = output.predictions.logits[0]
    found = model.detections(output, inputs)[0]["instances"]
    assert set(found.pred_classes.tolist()) == {0, 1, 2}
    assert found.scores.max().item() == pytest.approx(logits[:, [4, 1, 3]].max().sigmoid().item())
    best = int(logits[:, [4, 1, 3]].amax(0).argmax())
    assert found.pred_classes[0].item() == best


def test_a_model_with_more_logits_than_classes_learns_at_the_mapped_logits():
    model = build("one_stage", class_channels=[4, 1, 3])
    image = picture(64, 64)
    assert model.targets([image])[0].labels.tolist() == [4, 1]
    assert all(loss.isfinite() for loss in model.losses([image]).values())
