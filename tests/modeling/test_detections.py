"""Detections from the predictions of queries, by hand."""

import pytest
import torch

from sparse_detr.modeling.detector import BestClassDetections, TopKDetections
from sparse_detr.structures import PredictionGroup
from tests.modeling.tiny import build, picture, shake


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


NEAR, FAR = [0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.2, 0.2]
# Queries: an object, the same a little aside (IoU 0.9), the object again in another class, and another object.
QUERIES = [([4.0, -9.0], NEAR), ([2.0, -9.0], [0.5, 0.5, 0.36, 0.4]), ([-9.0, 3.0], NEAR), ([1.0, -9.0], FAR)]


def detect_queries(postprocess, rows=QUERIES, dtype=torch.float32):
    logits, boxes = (torch.tensor([values], dtype=dtype) for values in zip(*rows, strict=True))
    [found] = postprocess(PredictionGroup("decoder_5", "", logits, boxes, None), [(100, 100)])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_duplicates_are_suppressed_in_their_own_class(dtype):
    four = {"num_detections": 4}
    found = detect_queries(TopKDetections(suppress_duplicates=0.7, **four).eval(), dtype=dtype)
    everything = detect_queries(TopKDetections(**four).eval(), dtype=dtype)
    assert everything.pred_classes.tolist() == [0, 1, 0, 0]
    assert torch.equal(found.scores, everything.scores[[0, 1, 3]])
    assert torch.equal(found.pred_boxes.tensor, everything.pred_boxes.tensor[[0, 1, 3]])
    assert found.pred_classes.tolist() == [0, 1, 0]


def test_boxes_with_less_overlap_than_the_number_stay():
    assert len(detect_queries(TopKDetections(num_detections=4, suppress_duplicates=0.95).eval())) == 4


def test_nothing_is_suppressed_in_training_mode():
    assert len(detect_queries(TopKDetections(num_detections=4, suppress_duplicates=0.7).train())) == 4


def test_the_best_class_of_a_query_keeps_the_order_of_the_queries():
    rows = [([*logits, -9.0], box) for logits, box in reversed(QUERIES)]  # the last logit is that of no object
    found = detect_queries(BestClassDetections(suppress_duplicates=0.7).eval(), rows)
    assert found.pred_classes.tolist() == [0, 1, 0]
    assert found.pred_boxes.tensor[0].tolist() == pytest.approx([10, 10, 30, 30], abs=1e-4)
    assert found.pred_boxes.tensor[2].tolist() == pytest.approx([30, 30, 70, 70], abs=1e-4)


def test_without_suppression_detections_are_to_the_last_bit_the_best_pairs():
    generator = torch.Generator().manual_seed(0)
    logits, boxes = torch.randn(1, 60, 5, generator=generator), torch.rand(1, 60, 4, generator=generator)
    [found] = TopKDetections(num_detections=50).eval()(PredictionGroup("x", "", logits, boxes, None), [(80, 120)])
    scores, pairs = logits.sigmoid().flatten().topk(50)
    center, size = boxes[0, pairs // 5, :2], boxes[0, pairs // 5, 2:]
    corners = torch.cat([center - 0.5 * size, center + 0.5 * size], -1) * torch.tensor([120.0, 80, 120, 80])
    assert torch.equal(found.scores, scores)
    assert torch.equal(found.pred_classes, pairs % 5)
    assert torch.equal(found.pred_boxes.tensor, corners)


@pytest.mark.parametrize("part", [TopKDetections, BestClassDetections])
@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1])
def test_a_number_that_is_no_iou_is_refused(part, value):
    with pytest.raises(ValueError, match="suppress_duplicates is an IoU above 0 and below 1, or None, got"):
        part(suppress_duplicates=value)


@pytest.mark.parametrize("name", ["sparse", "detr"])
def test_a_model_and_its_inference_form_suppress_alike(name):
    from sparse_detr.inference import optimize

    model = build(name, dtype=torch.float32).eval()
    torch.manual_seed(0)
    shake(model, 0.3)
    inputs = [picture(64, 64)]
    everything = model(inputs)[0]["instances"]
    model.postprocess.suppress_duplicates = 0.1
    kept, same = (form(inputs)[0]["instances"] for form in (model, optimize(model)))
    assert 0 < len(kept) < len(everything)
    assert same.pred_classes.tolist() == kept.pred_classes.tolist()
    assert torch.allclose(same.scores, kept.scores, atol=1e-3)
