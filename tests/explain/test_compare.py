"""Two models compared: gained, lost, found by both or by neither."""

import torch

from sparse_detr.explain import ImageRuns, Target, compare_models, list_targets
from sparse_detr.explain.compare import shared_tokens
from sparse_detr.explain.words import difference_sentence
from tests.explain.made_up import TARGET, MadeUpRuns, prediction_of
from tests.modeling.tiny import build, picture

FAR = Target(torch.tensor([25.0, 25, 40, 40]), label=0)


def runs_with(score):
    runs = MadeUpRuns(lambda edit: score)
    runs.prediction = prediction_of(score)
    return runs


def test_true_objects_are_gained_or_lost():
    found, missed = runs_with(0.8), runs_with(0.1)
    lost = compare_models(found, missed, [TARGET, FAR], score_threshold=0.3)
    assert (lost.lost, lost.gained, lost.both, lost.neither) == ((TARGET,), (), (), (FAR,))
    gained = compare_models(missed, found, [TARGET, FAR], score_threshold=0.3)
    assert (gained.lost, gained.gained) == ((), (TARGET,))
    assert "gains 1 and loses 0, neither finds 1" in difference_sentence(gained)


def test_without_truth_the_detections_of_both_are_compared():
    difference = compare_models(runs_with(0.1), runs_with(0.8), None, score_threshold=0.3)
    assert (len(difference.gained), len(difference.lost), len(difference.both)) == (1, 0, 0)


def test_a_model_differs_in_nothing_from_itself():
    runs = ImageRuns(build("sparse").eval(), picture(96, 128))
    difference = compare_models(runs, runs, None, score_threshold=0.05)
    assert len(difference.both) == len(list_targets(runs.prediction, 0.05)) > 0
    assert difference.lost == difference.gained == ()
    assert difference.shared_tokens == (1.0,) * 4


def test_refined_tokens_are_compared_level_by_level():
    one, other = MadeUpRuns(lambda edit: 0.8), MadeUpRuns(lambda edit: 0.8)
    other.kept[0][:8] = False
    assert shared_tokens(one, other) == (0.5, 1.0)
