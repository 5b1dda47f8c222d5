"""The sentences say what was measured, also of one token, of numbers below 0 and of large models."""

import pytest
import torch

from sparse_detr.explain.faithfulness import Comparison, Curve, Explanation
from sparse_detr.explain.ledger import Cost, Ledger, LedgerRow
from sparse_detr.explain.words import detection_sentences, ledger_sentences
from tests.explain.made_up import TARGET


def explanation_of(count, faithfulness, without=0.4):
    curve = Curve((0.0, 1.0), (0, count), (0.8, without), (1.0, 1.0))
    random = Curve((0.0, 1.0), (0, count), (0.8, 0.8), (1.0, 1.0))
    found = Comparison("dropped", curve, random, (0.8, 0.8), (0.8, 0.8), faithfulness)
    under = torch.arange(20) < count
    return Explanation(TARGET, under, found, None, None, 0.8, None)


@pytest.mark.parametrize(
    ("count", "faithfulness", "sentence"),
    [
        (5, 0.5, "It was made mostly from 5 tokens under its box."),
        (5, 0.1, "The 5 tokens under its box help, but the detection does not depend on them."),
        (1, 0.1, "The 1 refined token under its box helps, but the detection does not depend on it."),
        (5, 0.0, "The 5 tokens under its box matter little more than random ones."),
        (1, 0.0, "The 1 refined token under its box matters little more than a random one."),
        (5, -0.3, "The 5 tokens under its box matter less than random ones."),
    ],
)
def test_the_conclusion_fits_the_number(count, faithfulness, sentence):
    assert detection_sentences(explanation_of(count, faithfulness), "cat")[1] == sentence


def test_one_token_is_one_in_all_sentences():
    text = " ".join(detection_sentences(explanation_of(1, 0.5), "cat"))
    assert "If the 1 refined token under its box is not refined" in text
    assert "without 1 random token it stays" in text
    assert "If the one token under its box is refined" in text


def test_a_large_model_has_its_gigaflops_without_an_exponent():
    row = LedgerRow(0, 0, 4, 2, {"background": 2}, Cost(127.3, 0.0), Cost(0.0, 0.0))
    assert ledger_sentences(Ledger((row,), 0.0))[0].startswith("The encoder takes 127 GFLOPs.")
