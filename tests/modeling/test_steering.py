"""Budgets that a caller steers with, by hand."""

import pytest
import torch

from sparse_detr.modeling.selection import CascadedBudget, EvenBudget
from sparse_detr.modeling.selection.steering import LevelBudget, MassBudget, MixedBudget, budget_of_call, parse_budget
from sparse_detr.structures import Pyramid

SHAPES = ((4, 4), (2, 2))


def pyramid(*valid, on_host=True):
    valid = valid or (SHAPES,)
    return Pyramid.of(SHAPES, valid if on_host else torch.tensor(valid))


def kept(selection):
    return [row.nonzero().flatten().tolist() for row in selection.keep]


@pytest.mark.parametrize("on_host", [True, False])
def test_every_level_keeps_its_own_best_tokens(on_host):
    """int(16 * 0.125) + 1 = 3 of the fine level, and all of the coarse one, though its scores are lower."""
    ranking = torch.arange(20.0, 0, -1)[None]
    selection = LevelBudget(shares=(0.125, 1)).select(ranking, pyramid(on_host=on_host))
    assert kept(selection) == [[0, 1, 2, 16, 17, 18, 19]]
    assert selection.indices[0, :7].tolist() == [0, 1, 2, 16, 17, 18, 19]  # best first


def test_the_levels_of_a_smaller_image_count_without_its_padding():
    """A level of 2 x 2 in 4 x 4 keeps int(4 * 0.5) + 1 = 3 tokens, one of 1 x 1 in 2 x 2 its only one."""
    small = ((2, 2), (1, 1))
    ranking = torch.arange(20.0).repeat(2, 1)  # padding has the highest scores
    selection = LevelBudget(shares=(0.5, 0.5)).select(ranking, pyramid(SHAPES, small))
    assert kept(selection)[1] == [1, 4, 5, 16]
    assert selection.counts.tolist() == [9 + 3, 3 + 1]


def test_equal_scores_keep_exactly_the_number():
    selection = LevelBudget(shares=(0.25, 0.5)).select(torch.zeros(1, 20), pyramid())
    assert selection.counts.tolist() == [5 + 3]
    (tokens,) = kept(selection)
    assert (sum(token < 16 for token in tokens), sum(token >= 16 for token in tokens)) == (5, 3)


def test_the_number_of_shares_must_be_that_of_the_levels():
    with pytest.raises(ValueError, match="the budget has 3 shares, .* but the model 2 levels"):
        LevelBudget(shares=(0.1, 0.2, 1)).select(torch.zeros(1, 20), pyramid())


@pytest.mark.parametrize("share", [0, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        LevelBudget(shares=(0.5, share))


def test_another_share_scales_all_levels_until_they_are_whole():
    budget = LevelBudget(shares=(0.25, 1))  # (0.25 + 0.25 * 1) / 1.25 = 0.4
    assert budget.keep_ratio == pytest.approx(0.4)
    assert budget.with_keep_ratio(0.2).shares == pytest.approx((0.125, 0.5))
    assert budget.with_keep_ratio(0.6).shares == pytest.approx((0.5, 1))
    assert budget.with_keep_ratio(1).shares == pytest.approx((1, 1))


def logits(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).logit()


@pytest.mark.parametrize(("mass", "expected"), [(0.4, 1), (0.6, 2), (0.95, 3), (1.0, 20)])
def test_an_image_keeps_as_many_tokens_as_hold_the_mass(mass, expected):
    """Of a saliency of 0.9 + 0.6 + 0.3 and 17 times nearly nothing."""
    ranking = logits(0.3, 0.9, 0.6, *[1e-3] * 17)
    assert MassBudget(mass=mass, min_keep_ratio=0.01).select(ranking, pyramid()).counts.tolist() == [expected]


def test_images_of_a_batch_have_their_own_numbers_within_the_limits():
    sharp, flat = logits(0.9, *[1e-6] * 19), logits(*[0.5] * 20)
    budget = MassBudget(mass=0.9, min_keep_ratio=0.12, max_keep_ratio=0.5)
    selection = budget.select(torch.cat([sharp, flat]), pyramid(SHAPES, SHAPES))
    assert selection.counts.tolist() == [3, 11]  # int(20 * 0.12) + 1 and int(20 * 0.5) + 1
    assert kept(selection)[0][0] == 0


def test_padding_has_no_saliency():
    ranking = torch.full((1, 20), 9.0)
    selection = MassBudget(mass=0.5, min_keep_ratio=0.01).select(ranking, pyramid(((2, 2), (1, 1))))
    assert selection.counts.tolist() == [3]  # of five tokens
    assert set(kept(selection)[0]) < {0, 1, 4, 5, 16}


def test_a_schedule_keeps_fewer_tokens_from_layer_to_layer():
    budget = LevelBudget(shares=(0.5, 1), schedule=(1, 0.5))
    selection = budget.select(torch.arange(20.0)[None], pyramid())
    assert [selection.at_layer(i).counts.tolist() for i in (0, 1)] == [[9 + 4], [6]]
    assert budget.mean_keep_ratio == pytest.approx(0.75 * budget.keep_ratio)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("0.3", 0.3),
        ("levels:0.25,0.5,1", LevelBudget(shares=(0.25, 0.5, 1))),
        ("mass:0.9", MassBudget(mass=0.9)),
        ("mass:0.9,0.05,0.5", MassBudget(mass=0.9, min_keep_ratio=0.05, max_keep_ratio=0.5)),
    ],
)
def test_a_budget_is_read_from_a_command_line(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "a", ":0.3", "0.3,0.4", "levels:", "levels:a", "mass:0.9,0.1", "ratio:0.3"])
def test_a_text_that_names_no_budget_is_refused(text):
    with pytest.raises(ValueError, match="is no budget; give a share of the tokens like 0.3"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0", "1.5", "nan", "levels:0.5,2", "mass:0", "mass:0.9,0.6,0.5"])
def test_a_budget_out_of_range_is_refused(text):
    with pytest.raises(ValueError, match="above 0 and at most 1|is above max_keep_ratio"):
        parse_budget(text)


def test_a_budget_is_written_as_it_is_read():
    for text in ("levels:0.25,0.5,1", "mass:0.9,0.02,1"):
        assert str(parse_budget(text)) == text


def test_a_budget_without_a_schedule_takes_that_of_the_model():
    own = CascadedBudget(keep_ratio=0.5, schedule=(1, 0.5))
    assert budget_of_call("levels:0.5,1", own).schedule == (1, 0.5)
    assert budget_of_call(LevelBudget(shares=(0.5, 1), schedule=()), own).schedule == ()
    assert budget_of_call("mass:0.9", EvenBudget(keep_ratio=0.5)).schedule == ()
    assert budget_of_call(0.25, own) == CascadedBudget(keep_ratio=0.25, schedule=(1, 0.5))
    assert budget_of_call(None, own) is own


@pytest.mark.parametrize("budget", [True, EvenBudget, torch.tensor(0.5), {}])
def test_what_is_no_budget_is_refused(budget):
    with pytest.raises(ValueError, match="give a share, above 0 and at most 1, a text like"):
        budget_of_call(budget, EvenBudget(keep_ratio=0.5))


@pytest.mark.parametrize("own", [EvenBudget(keep_ratio=1.0), CascadedBudget(keep_ratio=1.0, schedule=(1, 0.5))])
def test_images_of_a_batch_may_have_different_budgets(own):
    """Each keeps what it keeps in a batch of its own budget; a text and a number may stand side by side."""
    ranking = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    small = ((2, 2), (2, 2))
    geometry = pyramid(SHAPES, small, SHAPES)
    ranking = ranking.masked_fill(geometry.padding_mask, float("-inf"))
    budgets = [0.1, "levels:0.5,1", 1.0]
    mixed = budget_of_call(budgets, own).select(ranking, geometry)
    for image, budget in enumerate(budgets):
        alone = budget_of_call(budget, own).select(ranking, geometry)
        for layer in range(2):
            assert torch.equal(mixed.at_layer(layer).keep[image], alone.at_layer(layer).keep[image])
            assert mixed.at_layer(layer).counts[image] == alone.at_layer(layer).counts[image]
            count = int(alone.at_layer(layer).counts[image])
            best_first = alone.at_layer(layer).indices[image, :count]
            assert torch.equal(mixed.at_layer(layer).indices[image, :count], best_first)
    assert all(row.unique().numel() == row.numel() for row in mixed.indices)


def test_every_image_needs_a_budget():
    with pytest.raises(ValueError, match="there are 2 budgets for 1 images; give one for every image"):
        budget_of_call([0.1, 0.2], EvenBudget(keep_ratio=1.0)).select(torch.zeros(1, 20), pyramid())
    with pytest.raises(ValueError, match="there is no budget in the list"):
        MixedBudget([])
