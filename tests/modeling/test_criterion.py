"""The set loss, by hand."""

import math

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from sparse_detr.modeling.classification import SigmoidFocal, SoftmaxNoObject
from sparse_detr.modeling.training.criterion import SetCriterion
from sparse_detr.modeling.training.matching import HungarianMatcher
from sparse_detr.structures import PredictionGroup, Targets

BOX = (0.5, 0.5, 0.2, 0.2)


def make_group(logits, boxes, *, name="decoder_1", suffix="", **options):
    logits, boxes = torch.tensor(logits).requires_grad_(), torch.tensor(boxes).requires_grad_()
    return PredictionGroup(name=name, suffix=suffix, logits=logits, boxes=boxes, **options)


def make_targets(*images):
    """Make targets from one list of (label, box) for each image."""
    return [
        Targets(
            labels=torch.tensor([label for label, _ in image], dtype=torch.long),
            boxes=torch.tensor([box for _, box in image]).view(-1, 4),
        )
        for image in images
    ]


def criterion(**options):
    return SetCriterion(matcher=HungarianMatcher(), **options)


def focal(logit, positive):
    """Compute the sigmoid focal loss of one logit, alpha 0.25 and gamma 2."""
    p = 1 / (1 + math.exp(-logit))
    return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)


def test_the_focal_loss_has_the_published_value():
    group = make_group([[[2.0, -1.0], [0.5, -3.0]]], [[BOX, (0.9, 0.9, 0.1, 0.1)]])
    losses = criterion(class_weight=1.0)([group], make_targets([(0, BOX)]))
    assert losses["loss_class"].item() == pytest.approx(0.3005851, abs=1e-6)


def test_box_losses_are_l1_and_one_minus_generalized_iou_of_the_matched_pair():
    group = make_group([[[0.0], [0.0]]], [[(0.6, 0.5, 0.4, 0.2), (0.1, 0.1, 0.05, 0.05)]])
    losses = criterion()([group], make_targets([(0, BOX)]))
    assert losses["loss_bbox"].item() == pytest.approx(5 * 0.3, abs=1e-6)
    assert losses["loss_giou"].item() == pytest.approx(2 * (1 - 0.5), abs=1e-6)
    assert losses["loss_class"].item() == pytest.approx(2 * (focal(0, True) + focal(0, False)), abs=1e-6)


def test_losses_are_a_mean_over_the_true_boxes_of_all_images():
    near, far = (0.5, 0.5, 0.2, 0.3), (0.1, 0.1, 0.05, 0.05)
    group = make_group([[[0.0], [0.0]], [[0.0], [0.0]]], [[near, far], [far, near]])
    losses = criterion()([group], make_targets([(0, BOX)], [(0, BOX), (0, far)]))
    assert losses["loss_bbox"].item() == pytest.approx(5 * (0.1 + 0.1 + 0) / 3, abs=1e-6)


def test_the_losses_of_a_group_are_named_by_its_suffix():
    groups = [
        make_group([[[0.0]]], [[BOX]], suffix=suffix, name=name)
        for name, suffix in (("decoder_0", "_0"), ("decoder_1", ""), ("proposals", "_enc"))
    ]
    losses = criterion()(groups, make_targets([(0, BOX)]))
    assert set(losses) == {f"loss_{kind}{end}" for kind in ("class", "bbox", "giou") for end in ("_0", "", "_enc")}


def test_without_true_boxes_the_box_losses_are_zero_and_stay_in_the_graph():
    group = make_group([[[1.0, -1.0]], [[0.0, 0.5]]], [[BOX], [BOX]])
    losses = criterion()([group], make_targets([], []))
    assert losses["loss_bbox"].item() == losses["loss_giou"].item() == 0
    expected = 2 * sum(focal(logit, False) for logit in (1.0, -1.0, 0.0, 0.5))
    assert losses["loss_class"].item() == pytest.approx(expected, abs=1e-6)
    sum(losses.values()).backward()
    assert group.logits.grad.all()
    assert group.boxes.grad is not None
    assert not group.boxes.grad.any()


def test_an_image_without_boxes_beside_one_with_boxes_adds_negatives_only():
    group = make_group([[[1.0]], [[0.5]]], [[BOX], [BOX]])
    losses = criterion()([group], make_targets([], [(0, BOX)]))
    assert losses["loss_class"].item() == pytest.approx(2 * (focal(1.0, False) + focal(0.5, True)), abs=1e-6)
    assert losses["loss_bbox"].item() == 0


def test_with_more_boxes_than_queries_every_query_is_trained():
    far = (0.1, 0.1, 0.05, 0.05)
    group = make_group([[[0.0]]], [[BOX]])
    losses = criterion()([group], make_targets([(0, far), (0, BOX), (0, far)]))
    assert losses["loss_bbox"].item() == 0
    assert losses["loss_class"].item() == pytest.approx(2 * focal(0, True) / 3, abs=1e-6)


def test_rows_that_fill_the_batch_are_in_no_loss():
    full = make_group([[[1.0], [5.0]]], [[(0.4, 0.5, 0.2, 0.2), BOX]], valid=torch.tensor([[True, False]]))
    alone = make_group([[[1.0]]], [[(0.4, 0.5, 0.2, 0.2)]])
    targets = make_targets([(0, BOX)])
    with_filling, without = criterion()([full], targets), criterion()([alone], targets)
    assert {k: v.item() for k, v in with_filling.items()} == {k: pytest.approx(v.item()) for k, v in without.items()}
    sum(with_filling.values()).backward()
    assert full.logits.grad[0, 1].item() == 0
    assert not full.boxes.grad[0, 1].any()


def test_a_class_agnostic_group_learns_class_zero_for_every_label():
    group = make_group([[[1.0, -1.0]]], [[BOX]], class_agnostic=True)
    loss = criterion()([group], make_targets([(1, BOX)]))["loss_class"]
    assert loss.item() == pytest.approx(2 * (focal(1.0, True) + focal(-1.0, False)), abs=1e-6)


def test_a_group_keeps_the_matches_it_comes_with_and_shares_its_losses_among_the_repeats():
    """Two rows are matched with one true box; the matcher would match it with the second row only."""
    matches = [(torch.tensor([0, 1]), torch.tensor([0, 0]))]
    boxes = [[(0.6, 0.5, 0.2, 0.2), BOX, BOX]]
    group = make_group([[[1.0], [0.5], [0.5]]], boxes, matches=matches, repeats=2)
    losses = criterion()([group], make_targets([(0, BOX)]))
    assert losses["loss_bbox"].item() == pytest.approx(5 * 0.1 / 2, abs=1e-6)
    expected = 2 * (focal(1.0, True) + focal(0.5, True) + focal(0.5, False)) / 2
    assert losses["loss_class"].item() == pytest.approx(expected, abs=1e-6)


def test_the_epsilon_of_the_iou_lowers_the_iou_of_tiny_boxes():
    tiny = (0.5, 0.5, 0.001, 0.001)  # an area of 1e-6
    group = make_group([[[0.0]]], [[tiny]])
    assert criterion()([group], make_targets([(0, tiny)]))["loss_giou"].item() == pytest.approx(0, abs=1e-4)
    halved = criterion(iou_eps=1e-6)([group], make_targets([(0, tiny)]))["loss_giou"]
    assert halved.item() == pytest.approx(2 * 0.5, abs=1e-3)


def test_denoising_groups_may_have_another_weight_of_the_class_loss():
    matches = [(torch.tensor([0]), torch.tensor([0]))]
    given = make_group([[[1.0]]], [[BOX]], suffix="_dn", matches=matches)
    found = make_group([[[1.0]]], [[BOX]])
    losses = criterion(class_weight=2.0, denoising_class_weight=1.0)([given, found], make_targets([(0, BOX)]))
    assert losses["loss_class"].item() == pytest.approx(2 * losses["loss_class_dn"].item())
    equal = criterion(class_weight=2.0)([given, found], make_targets([(0, BOX)]))
    assert equal["loss_class"].item() == equal["loss_class_dn"].item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_focal_loss_and_its_gradient_are_those_of_torchvision(dtype, gamma):
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=dtype) * 3
    logits[0] = torch.tensor([-100.0, 100.0, -30.0, 30.0])
    logits[1] = -logits[0]
    logits.requires_grad_()
    rows, labels = torch.tensor([0, 0, 1, 3, 5]), torch.tensor([0, 1, 0, 2, 3])
    truth = torch.zeros(6, 4, dtype=dtype)
    truth[rows, labels] = 1
    count = torch.tensor(5.0, dtype=dtype)
    loss = SigmoidFocal(alpha=0.3, gamma=gamma)
    found = torch.stack(loss.losses(logits, (rows, labels), None, [2, 4], [count, count]))
    expected = sigmoid_focal_loss(logits, truth, alpha=0.3, gamma=gamma).split([2, 4])
    expected = torch.stack([part.sum() / count for part in expected])
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(x.sum(), logits)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("classification", [SigmoidFocal(), SoftmaxNoObject()], ids=["focal", "softmax"])
def test_groups_have_the_losses_and_gradients_together_that_each_has_alone(classification):
    """Groups of other queries, valid rows, labels, matches and repeats; one image without boxes."""
    torch.manual_seed(0)
    targets = make_targets([(0, BOX), (1, (0.3, 0.3, 0.1, 0.2))], [], [(1, BOX)])

    def group(queries, **options):
        return make_group(torch.randn(3, queries, 3).tolist(), torch.rand(3, queries, 4).tolist(), **options)

    def pairs(*images):
        return [tuple(torch.tensor(part, dtype=torch.long) for part in pair) for pair in images]

    given = pairs(([0, 3], [1, 1]), ([], []), ([2], [0]))
    groups = [
        group(5, suffix="_0"),
        group(4, suffix="_1", valid=torch.rand(3, 4) > 0.4, class_agnostic=True),
        group(5, suffix="_dn", matches=given, repeats=2),
    ]
    loss = SetCriterion(matcher=HungarianMatcher(classification=classification), classification=classification)
    together = loss(groups, targets)
    sum(together.values()).backward()
    gradients = [(group.logits.grad.clone(), group.boxes.grad.clone()) for group in groups]
    for group, expected in zip(groups, gradients, strict=True):
        group.logits.grad = group.boxes.grad = None
        alone = loss([group], targets)
        assert alone == {name: together[name] for name in alone}
        sum(alone.values()).backward()
        torch.testing.assert_close((group.logits.grad, group.boxes.grad), expected)
