"""The number of tokens that each encoder layer refines, by hand."""

import pytest
import torch

from sparse_detr.modeling.selection import (
    BatchCascadedBudget,
    CascadedBudget,
    EvenBudget,
    RandomScorer,
    TopKSelector,
    layer_shares,
)
from sparse_detr.modeling.selection.budgets import check_schedule, share_of

PUBLISHED = (1.0, 0.8, 0.6, 0.6, 0.4, 0.2)


def layers_of(kind, counts, keep_ratio, schedule):
    """Return the tokens of every layer and image; check that counts on the host and in a tensor agree."""
    budget = kind(keep_ratio=keep_ratio, schedule=schedule)
    layers = budget.host_layers(counts)
    assert [kept.tolist() for kept in budget.layers(torch.tensor(counts))] == layers
    assert all(bound >= max(kept) for bound, kept in zip(budget.largest(max(counts)), layers, strict=True))
    return layers


@pytest.mark.parametrize(
    ("count", "keep_ratio", "expected"),
    [
        (677, 0.3, 204),
        (449, 0.3, 135),
        (10, 0.1, 2),
        (10, 0.09, 1),
        (10, 1.0, 10),
        (1, 1.0, 1),
        (1, 1e-9, 1),
        (10, 0.95, 10),
    ],
)
def test_a_budget_is_the_truncated_share_plus_one_but_never_more_than_all_tokens(count, keep_ratio, expected):
    assert share_of(count, keep_ratio) == expected
    assert share_of(torch.tensor([count]), keep_ratio).tolist() == [expected]


def test_every_image_has_a_cascade_of_its_own():
    """Half of 677 and of 10 tokens, then 0.8 of the half, and so on."""
    assert layers_of(CascadedBudget, [677, 10], 0.5, PUBLISHED) == [
        [339, 6],
        [271, 5],
        [204, 4],
        [204, 4],
        [136, 3],
        [68, 2],
    ]


def test_a_cascade_with_keep_ratio_one_keeps_no_more_than_all_tokens():
    assert layers_of(CascadedBudget, [10, 1], 1.0, (1.0, 0.5)) == [[10, 1], [6, 1]]


def test_released_layers_keep_shares_of_the_largest_budget_but_of_no_image_more_than_its_first_layer():
    """K = int(677 / 2) + 1 = 339, of which 271, 203, 203, 135 and 67; the other image has int(449 / 2) + 1 = 225."""
    expected = [[339, 225], [271, 225], [203, 203], [203, 203], [135, 135], [67, 67]]
    assert layers_of(BatchCascadedBudget, [677, 449], 0.5, PUBLISHED) == expected


def test_released_layers_keep_one_token_at_least():
    assert layers_of(BatchCascadedBudget, [1, 1], 0.5, PUBLISHED) == [[1, 1]] * 6


@pytest.mark.parametrize(
    ("num_layers", "expected"),
    [
        (6, PUBLISHED),
        (1, (1.0,)),
        (2, (1.0, 0.2)),
        (3, (1.0, 0.6, 0.2)),
        (11, (1.0, 0.9, 0.8, 0.7, 0.6, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2)),
    ],
)
def test_the_published_schedule_is_spread_over_any_number_of_layers(num_layers, expected):
    shares = layer_shares(num_layers=num_layers, published=PUBLISHED)
    assert check_schedule(shares) == pytest.approx(expected)


def test_a_given_schedule_has_one_share_a_layer():
    assert layer_shares(num_layers=2, published=PUBLISHED, shares=[1, 0.5]) == (1.0, 0.5)
    with pytest.raises(ValueError, match="has 2 shares, and the encoder 3 layers; give one share for each layer"):
        layer_shares(num_layers=3, published=PUBLISHED, shares=[1, 0.5])


@pytest.mark.parametrize("schedule", [(), (0.8, 0.6), (1, 0.5, 0.6), (1, 0), (1, float("nan"))])
def test_a_schedule_starts_at_one_never_grows_and_stays_above_zero(schedule):
    with pytest.raises(ValueError, match="must start at 1, never grow and stay above 0, got"):
        CascadedBudget(keep_ratio=0.5, schedule=schedule)


def test_the_keep_ratio_is_that_of_the_first_layer_and_the_mean_is_reported_too():
    budget = CascadedBudget(keep_ratio=0.5, schedule=PUBLISHED)
    selector = TopKSelector(scorer=RandomScorer(), budget=budget, inference_keep_ratio=0.25)
    assert (selector.keep_ratio, selector.mean_keep_ratio) == (0.5, pytest.approx(0.3))
    assert selector.eval().mean_keep_ratio == pytest.approx(0.15)
    assert budget.with_keep_ratio(1.0).mean_keep_ratio == pytest.approx(0.6)
    assert EvenBudget(keep_ratio=0.3).mean_keep_ratio == 0.3


def test_budgets_are_exact_for_every_number_of_tokens_in_single_precision():
    """Products of 0.8, 0.6, ... and whole numbers up to 30 000 truncate to the same number in float32 and float64."""
    budgets = torch.arange(1, 30_000)
    for share in PUBLISHED[1:]:
        single = (torch.tensor(share, dtype=torch.float32) * budgets).int()
        assert torch.equal(single, (share * budgets.double()).int())
