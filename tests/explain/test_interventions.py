"""An intervention changes exactly the tokens that it names, for every kind of selector, one by one or in a batch."""

import pytest
import torch

from sparse_detr.errors import UserError
from sparse_detr.explain import EditedBudget, ImageRuns, Intervention, why_not_editable
from sparse_detr.modeling.selection import KeepAllTokens
from tests.modeling.tiny import build, picture

EDITABLE = ["sparse", "focus", "topk", "sparse_dino", "pnp"]


def make_runs(name="sparse", **options):
    return ImageRuns(build(name).eval(), picture(96, 128), **options)


def mask_of(like, index):
    return torch.zeros_like(like).index_fill(0, index, True)


def assert_same(one, other):
    torch.testing.assert_close(one.scores, other.scores)
    torch.testing.assert_close(one.boxes, other.boxes)


@pytest.mark.parametrize("name", EDITABLE)
def test_exactly_the_named_tokens_are_dropped_in_every_layer(name):
    runs = make_runs(name)
    drop = mask_of(runs.kept[0], runs.kept[0].nonzero()[::3, 0])
    kept = runs.run([Intervention(drop=drop)])[0].kept
    assert drop.any()
    for layer, before in enumerate(runs.kept):
        assert torch.equal(kept[layer], before & ~drop)


def test_the_model_itself_selects_what_the_edited_budget_says():
    runs = make_runs()
    drop = mask_of(runs.kept[0], runs.kept[0].nonzero()[:2, 0])
    budget = EditedBudget(runs.model.selector.budget, [Intervention(drop=drop)])
    with torch.no_grad():
        output = runs.model.outputs([runs.item], budget)
    assert torch.equal(output.selection.keep[0], runs.kept[0] & ~drop)
    assert output.selection.counts.tolist() == [int(runs.kept[0].sum()) - 2]


@pytest.mark.parametrize("name", ["sparse", "focus"])
def test_exactly_the_named_tokens_are_added_in_every_layer(name):
    runs = make_runs(name)
    force = mask_of(runs.kept[0], (~runs.kept[0]).nonzero()[:3, 0])
    kept = runs.run([Intervention(force=force)])[0].kept
    for layer, before in enumerate(runs.kept):
        assert torch.equal(kept[layer], before | force)


def test_a_token_that_is_both_dropped_and_added_is_dropped():
    runs = make_runs()
    both = mask_of(runs.kept[0], torch.tensor([0, 5]))
    assert not runs.run([Intervention(drop=both, force=both)])[0].kept[0][both].any()


@pytest.mark.parametrize("name", EDITABLE)
def test_a_batch_of_interventions_equals_one_after_the_other(name):
    runs, alone = make_runs(name), make_runs(name, chunk=1)
    kept = runs.kept[0].nonzero()[:, 0]
    edits = [
        Intervention(),
        Intervention(drop=mask_of(runs.kept[0], kept[:1])),
        Intervention(drop=mask_of(runs.kept[0], kept[1:])),
        Intervention(force=mask_of(runs.kept[0], torch.tensor([2, 3]))),
    ]
    for one, other in zip(runs.run(edits), alone.run(edits), strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", EDITABLE)
def test_no_intervention_changes_nothing(name):
    runs = make_runs(name)
    assert_same(runs.run([Intervention()])[0], runs.prediction)


@pytest.mark.parametrize("name", ["sparse", "focus", "topk"])
def test_without_any_refined_token_the_encoder_changes_nothing(name):
    runs = make_runs(name)
    everything = torch.ones_like(runs.kept[0])
    found = runs.run([Intervention(drop=everything)])[0]
    assert not found.kept[0].any()
    with torch.no_grad():
        encoded = runs.model.encode(runs.tokens)
        content = runs.tokens.content
        queries = runs.model.queries(content, encoded.proposals)
    assert found.scores.isfinite().all()
    assert queries.reference_points.shape[1] == len(found.scores)


def test_every_image_of_a_batch_may_have_another_budget():
    runs = make_runs()
    few, many = runs.run([Intervention(budget=0.1), Intervention(budget=0.6)])
    for found, budget in ((few, 0.1), (many, 0.6)):
        with torch.no_grad():
            output = runs.model.outputs([runs.item], budget)
        assert torch.equal(found.kept[0], output.selection.keep[0])
        torch.testing.assert_close(found.scores, ImageRuns(runs.model, runs.item, budget=budget).prediction.scores)


def test_a_dense_model_gets_its_own_selector_back():
    runs = make_runs("topk")
    runs.run([Intervention(drop=torch.ones_like(runs.kept[0]))])
    assert isinstance(runs.model.selector, KeepAllTokens)


@pytest.mark.parametrize(("name", "reason"), [("lite", "whole levels"), ("detr", "attend to all")])
def test_a_model_that_cannot_leave_a_token_out_says_why(name, reason):
    model = build(name).eval()
    runs = ImageRuns(model, picture(96, 128))
    assert reason in why_not_editable(model)
    with pytest.raises(UserError, match=reason):
        runs.run([Intervention()])


def test_one_intervention_an_image_is_needed():
    runs = make_runs()
    with pytest.raises(ValueError, match="2 interventions for 1 images"), torch.no_grad():
        runs.model.outputs([runs.item], EditedBudget(runs.model.selector.budget, [Intervention()] * 2))
