"""Distillation within a step, by hand."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.modeling.classification import SigmoidFocal, SoftmaxNoObject
from sparse_detr.modeling.training import Distillation, HungarianMatcher, SetCriterion
from sparse_detr.structures import PredictionGroup
from tests.modeling.tiny import build, picture

PICTURES = [picture(64, 96), picture(48, 40)]
BOX, MOVED, FAR = [0.5, 0.5, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]


def group(probabilities, boxes, valid=None):
    logits = torch.tensor([probabilities], dtype=torch.float64).logit()
    boxes = torch.tensor([boxes], dtype=torch.float64)
    return PredictionGroup("decoder_0", "", logits, boxes, None if valid is None else torch.tensor([valid]))


def distilled(student, teacher, **options):
    return Distillation(**options)(student, teacher, SetCriterion(matcher=HungarianMatcher()))


def test_a_moved_box_and_a_lower_probability_have_these_losses():
    """L1 0.1 with weight 5; IoU of 0.2 x 0.2 boxes, 0.1 apart, is 1/3, as is their generalized IoU; weight 2."""
    teacher, student = group([[0.9], [0.1]], [BOX, FAR]), group([[0.01], [0.6]], [FAR, MOVED])
    losses = distilled(student, teacher)
    assert losses["loss_distill_bbox"].item() == pytest.approx(5 * 0.1)
    assert losses["loss_distill_giou"].item() == pytest.approx(2 * (1 - 1 / 3))
    taught, learned = torch.tensor([0.9, 0.1]), torch.tensor([0.6, 0.4])
    assert losses["loss_distill_class"].item() == pytest.approx(2 * (taught * (taught / learned).log()).sum().item())


def test_equal_predictions_in_another_order_have_no_loss():
    teacher = group([[0.9, 0.2], [0.3, 0.8], [0.1, 0.1]], [BOX, FAR, MOVED])
    student = group([[0.1, 0.1], [0.9, 0.2], [0.3, 0.8]], [MOVED, BOX, FAR])
    assert sum(distilled(student, teacher).values()).item() == pytest.approx(0, abs=1e-9)


def test_the_losses_are_divided_by_the_boxes_of_the_teacher_and_have_the_weight():
    teacher = group([[0.9], [0.8]], [BOX, FAR])
    student = group([[0.9], [0.8]], [MOVED, FAR])
    assert distilled(student, teacher, weight=3.0)["loss_distill_bbox"].item() == pytest.approx(3 * 5 * 0.1 / 2)


@pytest.mark.parametrize(
    "teacher", [group([[0.2], [0.2]], [BOX, FAR]), group([[0.9], [0.1]], [BOX, FAR], [False, True])]
)
def test_boxes_without_a_sure_class_and_surplus_rows_teach_nothing(teacher):
    assert all(loss == 0 for loss in distilled(group([[0.5], [0.5]], [MOVED, FAR]), teacher).values())


def test_a_surplus_row_of_the_student_is_not_taught():
    """The row at the teacher's box only fills the batch, so the other one learns it."""
    student = group([[0.9], [0.9]], [BOX, MOVED], [False, True])
    assert distilled(student, group([[0.9]], [BOX]))["loss_distill_bbox"].item() == pytest.approx(5 * 0.1)


def test_the_teacher_gets_no_gradient_from_the_student():
    teacher, student = group([[0.9]], [BOX]), group([[0.6]], [MOVED])
    for tensor in (teacher.logits, teacher.boxes, student.logits, student.boxes):
        tensor.requires_grad_()
    sum(distilled(student, teacher).values()).backward()
    assert teacher.logits.grad is teacher.boxes.grad is None
    assert student.logits.grad.abs().sum() > 0
    assert student.boxes.grad.abs().sum() > 0


@pytest.mark.parametrize("classes", [SigmoidFocal(), SoftmaxNoObject()])
def test_the_divergence_is_that_of_pytorchs_distributions(classes):
    logits, teacher = torch.randn(2, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if isinstance(classes, SigmoidFocal):
        kinds = [torch.distributions.Bernoulli(logits=x) for x in (teacher, logits)]
        expected = torch.distributions.kl_divergence(*kinds).sum(-1)
    else:
        kinds = [torch.distributions.Categorical(logits=x) for x in (teacher, logits)]
        expected = torch.distributions.kl_divergence(*kinds)
    assert_close(classes.divergence(logits, teacher), expected)
    assert_close(classes.divergence(logits, logits), torch.zeros(7, dtype=torch.float64))


def distilling(name="sparse", **options):
    model = build(name, training_keep_ratios=(0.1, 1.0), distillation_weight=1.0, **options)
    model.distillation.min_score = 0.05
    return model


def test_a_step_has_the_losses_of_the_drawn_run_of_the_whole_model_and_between_them():
    model = distilling()
    losses = model(PICTURES, 0.3)
    plain, full = model.eval().losses(PICTURES, 0.3), model.losses(PICTURES, 1.0)
    names = {"loss_distill_class", "loss_distill_bbox", "loss_distill_giou"}
    own = {f"{name}_full" for name in full if name != "loss_token_score"}
    assert set(losses) == set(plain) | names | own
    for name, loss in plain.items():
        assert_close(losses[name], loss)
    for name in own:
        assert_close(losses[name], full[name.removesuffix("_full")])
    assert all(losses[name] > 0 for name in names)


def test_at_full_budget_nothing_is_distilled_and_inference_runs_once():
    model = distilling()
    losses = model(PICTURES, 1.0)
    assert sum(loss for name, loss in losses.items() if "distill" in name).item() == pytest.approx(0, abs=1e-9)
    runs = []
    model.encoder.register_forward_hook(lambda *_: runs.append(1))
    model.eval()(PICTURES)
    assert len(runs) == 1


@pytest.mark.parametrize("name", ["sparse", "sparse_dino", "focus"])
def test_a_teacher_without_losses_of_its_own_is_not_trained(name):
    model = distilling(name)
    model.distillation.trains_all = False
    losses = model(PICTURES)
    assert not [key for key in losses if key.endswith("_full")]
    sum(loss for key, loss in losses.items() if "distill" in key).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
