"""Curves and areas by hand, the search for a detection, and the draws of random tokens."""

import pytest
import torch

from sparse_detr.explain import Explainer, ImageRuns, Prediction, Target, list_targets, search
from sparse_detr.explain.faithfulness import Curve, Trial, area, faithfulness
from sparse_detr.explain.sanity import rank_correlation
from tests.explain.made_up import TARGET, MadeUpRuns, dropped
from tests.modeling.tiny import build, picture

UNDER_THE_BOX = {0, 1, 4, 5, 16}


def curve(*scores):
    shares = tuple(i / (len(scores) - 1) for i in range(len(scores)))
    return Curve(shares, tuple(range(len(scores))), scores, scores)


def test_the_area_under_straight_lines():
    assert area([0, 0.5, 1], [1, 0, 0]) == pytest.approx(0.25)
    assert area([0, 0.2, 1], [0.5, 0.5, 0.5]) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("kind", "explained", "random", "expected"),
    [
        ("dropped", (0.8, 0.0, 0.0), (0.8, 0.8, 0.8), 0.75),
        ("dropped", (0.8, 0.4, 0.4), (0.8, 0.4, 0.4), 0.0),
        ("dropped", (0.8, 0.8, 0.8), (0.8, 0.0, 0.0), -0.75),
        ("alone", (0.0, 0.8, 0.8), (0.0, 0.0, 0.0), 0.75),
        ("alone", (0.4, 0.8, 0.8), (0.4, 0.4, 0.4), 0.375),
        ("dropped", (0.8, 1.0, 1.0), (0.8, 0.8, 0.8), 0.0),  # a higher score counts as the original one
    ],
)
def test_the_faithfulness_number_is_the_area_between_the_curves(kind, explained, random, expected):
    assert faithfulness(kind, curve(*explained), curve(*random), 0.8) == pytest.approx(expected)


def test_a_detection_is_found_by_its_class_and_its_place():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0.0, 0, 20, 12], [20.0, 20, 40, 40], [0.0, 0, 20, 20]])
    scores = torch.tensor([[0.3, 0.0], [0.7, 0.0], [0.9, 0.0], [0.0, 0.95]])
    found = search(Prediction(scores, boxes, kept=()), TARGET)
    assert found == pytest.approx((0.7, 0.6))


def test_what_is_found_nowhere_has_no_score_and_no_overlap():
    prediction = Prediction(torch.tensor([[0.9, 0.0]]), torch.tensor([[20.0, 20, 40, 40]]), kept=())
    assert search(prediction, TARGET) == (0.0, 0.0)


def test_detections_are_listed_best_first_without_repetitions():
    boxes = torch.tensor([[0.0, 0, 20, 20], [0.0, 0, 20, 19], [0.0, 0, 20, 20], [20.0, 20, 40, 40], [0.0, 0, 9, 9]])
    scores = torch.tensor([[0.5, 0.0], [0.6, 0.0], [0.0, 0.55], [0.9, 0.1], [0.2, 0.0]])
    found = list_targets(Prediction(scores, boxes, kept=()), 0.3)
    assert [(target.query, target.label) for target in found] == [(3, 0), (1, 0), (2, 1)]
    assert [target.query for target in list_targets(Prediction(scores, boxes, kept=()), 0.3, most=1)] == [3]


def test_a_detection_that_lives_on_its_tokens_falls_with_them_and_not_with_others():
    """The score is 0.8 times the share of the tokens under the box that stay."""
    runs = MadeUpRuns(lambda edit: 0.8 * (1 - len(dropped(edit) & UNDER_THE_BOX) / 5))
    found = Explainer(runs, shares=(0.2, 0.6, 1.0), draws=2).explain(TARGET)
    assert set(found.under.nonzero()[:, 0].tolist()) == UNDER_THE_BOX
    assert found.dropped.explained.counts == (0, 1, 3, 5)
    assert found.dropped.explained.scores == pytest.approx((0.8, 0.64, 0.32, 0.0))
    assert found.alone.explained.scores == pytest.approx((0.0, 0.16, 0.48, 0.8))
    assert found.dropped.faithfulness > 0.2
    assert found.forced == pytest.approx(0.8)
    assert found.points is None


def test_a_detection_that_depends_on_no_token_has_the_number_zero():
    found = Explainer(MadeUpRuns(lambda edit: 0.8)).explain(TARGET)
    assert found.dropped.faithfulness == found.alone.faithfulness == 0
    assert found.dropped.lowest == found.dropped.highest == pytest.approx((0.8,) * 6)


def test_tokens_are_dropped_best_score_first_each_step_more():
    runs = MadeUpRuns(lambda edit: 0.8)
    explainer = Explainer(runs, shares=(0.4, 1.0), draws=1)
    runs.edits.clear()
    explainer.drop_box(TARGET)
    assert [dropped(edit) for edit in runs.edits[:2]] == [{0, 1}, UNDER_THE_BOX]
    assert [len(dropped(edit)) for edit in runs.edits[2:]] == [2, 5]


def test_random_tokens_are_refined_ones_of_the_same_levels():
    runs = MadeUpRuns(lambda edit: 0.8)
    runs.kept[0][:8] = False
    explainer = Explainer(runs, shares=(1.0,), draws=4)
    trial = Trial("dropped", torch.tensor([9, 16, 12]), explainer)
    assert len(trial.orders) == 5
    for order in trial.orders[1:]:
        assert runs.kept[0][order].all()
        assert len(set(order.tolist())) == 3
        assert [int(token) >= 16 for token in order] == [False, True, False]


def test_without_a_refined_token_under_the_box_there_is_no_curve():
    runs = MadeUpRuns(lambda edit: 0.8)
    runs.kept[0][list(UNDER_THE_BOX)] = False
    found = Explainer(runs).explain(TARGET)
    assert (found.dropped, found.alone) == (None, None)


@pytest.mark.parametrize("name", ["sparse", "topk", "pnp"])
def test_a_detection_of_a_real_model_is_explained(name):
    runs = ImageRuns(build(name).eval(), picture(96, 128))
    explainer = Explainer(runs, shares=(0.5, 1.0), draws=2)
    target = list_targets(runs.prediction, 0.0)[0]
    target = Target(torch.tensor([20.0, 20, 100, 80]).to(target.box), target.label, target.score, target.query)
    found = explainer.explain(target)
    number = int((found.under & runs.kept[0]).sum())
    assert found.dropped.explained.counts == (0, round(number / 2), number)
    assert -1 <= found.dropped.faithfulness <= 1
    assert (found.points is None) == (name == "pnp")
    if found.attention is not None:
        assert float(found.attention.sum()) > 0


def test_the_maps_of_two_models_differ_and_of_one_agree():
    item = picture(96, 128)
    one, other = (ImageRuns(build("sparse", seed=seed).eval(), item) for seed in (0, 1))
    assert rank_correlation(one, one) == ("token scores", pytest.approx(1.0))
    assert abs(rank_correlation(one, other)[1]) < 0.6
    assert rank_correlation(one, ImageRuns(build("topk").eval(), item))[0] == "attention map"
