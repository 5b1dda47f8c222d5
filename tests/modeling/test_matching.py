"""The assignment, by hand and against every permutation."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from sparse_detr.modeling.classification import SigmoidFocal
from sparse_detr.modeling.training.matching import HungarianMatcher
from sparse_detr.structures import PredictionGroup, Targets


def make_group(logits, boxes, **options):
    return PredictionGroup(name="decoder_1", suffix="", logits=logits, boxes=boxes, **options)


def match(group, target):
    """Return (rows, true boxes) of the only image of a group."""
    return HungarianMatcher()([group], [target])[0][0]


def random_case(queries, boxes, *, classes=3, seed=0):
    """Make (group of one image, its targets) in float64."""
    generator = torch.Generator().manual_seed(seed)

    def make_boxes(count):
        return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 0.4 + 0.1

    logits = torch.randn(1, queries, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (boxes,), generator=generator)
    return make_group(logits, make_boxes(queries)[None]), Targets(labels=labels, boxes=make_boxes(boxes))


def pair_cost(logits, box, label, true):
    """Compute 2 focal + 5 L1 - 2 GIoU of one prediction and one true box, in plain Python."""
    p = 1 / (1 + math.exp(-logits[label]))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
    corners = [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in (box, true)]
    (ax, ay, bx, by), (cx, cy, dx, dy) = corners
    inner = max(0, min(bx, dx) - max(ax, cx)) * max(0, min(by, dy) - max(ay, cy))
    outer = (max(bx, dx) - min(ax, cx)) * (max(by, dy) - min(ay, cy))
    union = (bx - ax) * (by - ay) + (dx - cx) * (dy - cy) - inner
    giou = inner / union - (outer - union) / outer
    return 2 * focal + 5 * sum(abs(a - b) for a, b in zip(box, true, strict=True)) - 2 * giou


def test_every_true_box_is_matched_with_the_prediction_of_the_same_box():
    boxes = torch.tensor([[0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.3, 0.3]])
    group = make_group(torch.zeros(1, 3, 2), boxes[None])
    rows, true = match(group, Targets(labels=torch.tensor([0, 1]), boxes=boxes[[2, 0]]))
    assert dict(zip(true.tolist(), rows.tolist(), strict=True)) == {0: 2, 1: 0}


def test_of_two_equal_boxes_the_one_with_the_right_class_is_matched():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    group = make_group(torch.tensor([[[3.0, -3.0], [-3.0, 3.0]]]), box.expand(1, 2, 4))
    rows, _ = match(group, Targets(labels=torch.tensor([1]), boxes=box[None]))
    assert rows.tolist() == [1]


def test_a_class_agnostic_group_is_matched_as_if_every_label_were_zero():
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    group = make_group(torch.tensor([[[3.0, -3.0], [-3.0, 3.0]]]), box.expand(1, 2, 4), class_agnostic=True)
    rows, _ = match(group, Targets(labels=torch.tensor([1]), boxes=box[None]))
    assert rows.tolist() == [0]


@pytest.mark.parametrize("seed", range(3))
def test_the_cost_equals_plain_python_and_no_assignment_costs_less(seed):
    group, target = random_case(5, 3, seed=seed)
    matcher = HungarianMatcher()
    expected = [
        [pair_cost(logits, box, label, true) for label, true in zip(target.labels.tolist(), target.boxes.tolist())]
        for logits, box in zip(group.logits[0].tolist(), group.boxes[0].tolist())
    ]
    cost = matcher.cost(group.logits[0], group.boxes[0], target.labels, target.boxes)
    assert cost.tolist() == [pytest.approx(row) for row in expected]
    rows, true = match(group, target)
    best = min(sum(expected[q][t] for t, q in enumerate(chosen)) for chosen in itertools.permutations(range(5), 3))
    assert sum(expected[q][t] for q, t in zip(rows.tolist(), true.tolist())) == pytest.approx(best)


def test_more_true_boxes_than_predictions_leave_some_boxes_unmatched():
    group, target = random_case(2, 6)
    rows, true = match(group, target)
    assert sorted(rows.tolist()) == [0, 1]
    assert len(set(true.tolist())) == 2


def test_no_true_boxes_match_nothing():
    group, target = random_case(4, 0)
    rows, true = match(group, target)
    assert rows.shape == true.shape == (0,)
    assert rows.dtype == true.dtype == torch.long


def test_rows_that_fill_the_batch_are_never_matched_even_if_they_fit_best():
    group, target = random_case(6, 2)
    boxes = group.boxes.clone()
    boxes[0, [1, 4]] = target.boxes
    valid = torch.tensor([[True, False, True, True, False, True]])
    rows, _ = match(make_group(group.logits, boxes, valid=valid), target)
    assert set(rows.tolist()) <= {0, 2, 3, 5}
    expected = match(make_group(group.logits[:, valid[0]], boxes[:, valid[0]]), target)[0]
    assert rows.tolist() == torch.tensor([0, 2, 3, 5])[expected].tolist()


def test_rows_that_fill_the_batch_may_hold_any_values():
    group, target = random_case(3, 2)
    logits = torch.cat([group.logits, torch.full((1, 1, 3), float("nan"), dtype=torch.float64)], 1)
    boxes = torch.cat([group.boxes, torch.full((1, 1, 4), float("inf"), dtype=torch.float64)], 1)
    rows, _ = match(make_group(logits, boxes, valid=torch.tensor([[True] * 3 + [False]])), target)
    assert sorted(rows.tolist()) == sorted(match(group, target)[0].tolist())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_raise_and_name_the_group_and_the_image(value):
    group, target = random_case(3, 2)
    boxes = torch.cat([group.boxes, group.boxes])
    boxes[1, 2, 0] = value
    broken = make_group(group.logits.repeat(2, 1, 1), boxes)
    group_of_two = replace(make_group(broken.logits, group.boxes.repeat(2, 1, 1)), name="decoder_0")
    with pytest.raises(FloatingPointError, match=r"decoder_1 is not finite for image 1 of the batch"):
        HungarianMatcher()([group_of_two, broken], [target, target])


def test_groups_of_all_sizes_are_matched_together_as_each_alone():
    """Groups of other queries, invalid rows and labels; images with other numbers of boxes, one without."""
    cases = [random_case(5, count, seed=count) for count in (3, 0, 2)]
    targets = [target for _, target in cases]
    logits, boxes = (torch.cat([getattr(group, name) for group, _ in cases]) for name in ("logits", "boxes"))
    groups = [
        make_group(logits, boxes),
        make_group(logits.flip(1)[:, :4], boxes.flip(1)[:, :4], valid=torch.rand(3, 4) > 0.3),
        make_group(logits[:, 1:], boxes[:, 1:], class_agnostic=True),
    ]
    together = HungarianMatcher()(groups, targets)
    for group, images in zip(groups, together, strict=True):
        for image, (rows, true) in enumerate(images):
            one = slice(image, image + 1)
            valid = None if group.valid is None else group.valid[one]
            alone = replace(group, logits=group.logits[one], boxes=group.boxes[one], valid=valid)
            expected = match(alone, targets[image])
            assert (rows.tolist(), true.tolist()) == tuple(x.tolist() for x in expected)


def test_the_costs_of_all_groups_come_to_the_host_in_one_copy(monkeypatch):
    group, target = random_case(5, 3)
    copies = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x.shape) or original(x))
    HungarianMatcher()([group, make_group(group.logits[:, :2], group.boxes[:, :2])], [target])
    assert copies == [(1, 5 + 2, 3 + 1)]  # the last column says which rows are valid


@pytest.mark.parametrize("classes", [1, 8])
def test_the_focal_cost_is_the_same_whether_there_are_more_classes_or_more_boxes(classes):
    logits, labels = torch.randn(2, 3, classes), torch.randint(classes, (2, 4))
    cost = SigmoidFocal().cost(logits, labels)
    for image, query, box in itertools.product(range(2), range(3), range(4)):
        alone = SigmoidFocal().cost(logits[image, query : query + 1], labels[image, box : box + 1])
        torch.testing.assert_close(cost[image, query, box], alone[0, 0])
