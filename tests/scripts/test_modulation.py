"""Scorers are compared on the same tokens, from the same start."""

import pytest
import torch

from tests.modeling.tiny import make_pyramid

SHAPES = ((4, 6), (2, 3))


@pytest.fixture
def script(load_script):
    return load_script("modulation", "projects/FocusDETR/results")


@pytest.fixture
def tokens(script):
    """Return two images whose foreground are the tokens with a positive first channel."""
    torch.manual_seed(0)
    projected = torch.randn(2, 30, 16)
    pyramid = make_pyramid(SHAPES)
    return [script.Example(x[None], pyramid, x[None, :, 0] > 0, torch.zeros(3, 32, 48)) for x in projected]


@pytest.mark.parametrize(("form", "changes"), [("exact", True), ("released", False)])
def test_only_the_exact_form_changes_scores_of_the_finer_level(script, tokens, form, changes):
    scorer = script.train_scorer(form, tokens, seed=0, steps=1)
    alpha = scorer.alpha.tolist()
    finer, coarser = script.change_of_scores(scorer, tokens)
    assert (finer > 1e-3) == changes
    assert coarser == 0
    assert scorer.alpha.tolist() == alpha


def test_a_trained_scorer_finds_the_foreground(script, tokens):
    share = sum(int(example.labels.sum()) for example in tokens) / 60
    before, after = (
        script.evaluate_scorer(script.train_scorer("exact", tokens, seed=0, steps=steps), tokens, [share, 1.0])
        for steps in (1, 300)
    )
    assert after["loss"] < before["loss"]
    assert after["recall"][0] > before["recall"][0]
    assert after["recall"][1] == 100


def test_results_become_a_table(script):
    run = {"loss": 0.5, "recall": [80.0, 60.0], "change": [0.25, 2.0, 0.0]}
    other = {"loss": 0.5, "recall": [82.0, 60.0], "change": [0.75, 3.0, 0.0]}
    found = {"budgets": [0.5, 0.3], "scorers": {"none": [run, other]}}
    lines = script.summary(found).splitlines()
    assert lines[0] == "| modulation | change of scores | loss | recall at 50% | recall at 30% |"
    assert lines[2] == "| none | 0.5, 2.5 | 0.5000 ± 0.0000 | 81.0 ± 1.4 | 60.0 ± 0.0 |"
