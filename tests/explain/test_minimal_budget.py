"""The smallest budget at which an object is found: from a table by hand, by bisection, and by size."""

import pytest
import torch

from sparse_detr.explain import FoundFrom, Target
from sparse_detr.explain.minimal_budget import by_size, first_found, has_budget, predict_at, search_budgets, size_of
from sparse_detr.explain.words import found_from, size_sentences
from tests.explain.made_up import TARGET, MadeUpRuns
from tests.modeling.tiny import build

BUDGETS = (0.05, 0.1, 0.2, 0.5)


@pytest.mark.parametrize(
    ("found", "smallest", "lost_again"),
    [
        ((True, True, True, True), 0.05, ()),
        ((False, False, True, True), 0.2, ()),
        ((False, True, False, True), 0.1, (0.2,)),
        ((False, True, False, False), 0.1, (0.2, 0.5)),
        ((False, False, False, False), None, ()),
    ],
)
def test_the_first_budget_counts_and_later_losses_are_told(found, smallest, lost_again):
    assert first_found(BUDGETS, found) == (smallest, lost_again)


def search_with(score_of_budget, **options):
    runs = MadeUpRuns(lambda edit: score_of_budget(edit.budget))
    return search_budgets(runs, [TARGET], predict_at(runs, BUDGETS), score_threshold=0.3, **options)[0]


def test_bisection_closes_in_on_the_budget():
    """Found from 0.13 on: the grid says 0.2; 0.15 finds it, 0.125 does not, 0.1375 does."""
    row = search_with(lambda budget: 0.8 if budget >= 0.13 else 0.1)
    assert row.scores == pytest.approx((0.1, 0.1, 0.8, 0.8))
    assert row.smallest == pytest.approx(0.1375)
    assert search_with(lambda budget: 0.8 if budget >= 0.13 else 0.1, bisections=0).smallest == 0.2


def test_an_object_that_every_budget_finds_is_not_searched_below_the_grid():
    row = search_with(lambda budget: 0.8)
    assert row.smallest == 0.05
    assert found_from(row) == "found from rho = 0.05 on, the smallest budget tried"


def test_an_object_that_more_tokens_lose_is_told():
    row = search_with(lambda budget: 0.8 if budget < 0.3 else 0.2)
    assert row.lost_again == (0.5,)
    assert found_from(row).endswith(", but not at 0.5")
    assert "1 of 1 are lost again at a larger budget" in size_sentences([row])[-1]


def test_an_object_that_is_never_found_has_no_budget():
    row = search_with(lambda budget: 0.2)
    assert row.smallest is None
    assert found_from(row) == "not found at any budget"


def test_objects_are_counted_by_their_size_in_pixels():
    def row(side, smallest):
        return FoundFrom(Target(torch.tensor([0.0, 0, side, side]), 0), BUDGETS, (), smallest, ())

    summary = by_size([row(10, 0.1), row(31, 0.3), row(20, None), row(32, 0.2), row(200, None)])
    assert summary["small"] == {"objects": 3, "never_found": 1, "median": pytest.approx(0.2)}
    assert summary["medium"] == {"objects": 1, "never_found": 0, "median": 0.2}
    assert summary["large"] == {"objects": 1, "never_found": 1, "median": None}
    assert size_of(Target(torch.tensor([0.0, 0, 200, 200]), 0, area=1000.0)) == "small"


@pytest.mark.parametrize(("name", "expected"), [("sparse", True), ("focus", True), ("topk", False), ("lite", False)])
def test_models_that_choose_tokens_have_a_budget(name, expected):
    assert has_budget(build(name)) is expected
