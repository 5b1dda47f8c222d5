"""The certificate passes a model that keeps its promise, and names what breaks one that does not."""

import pytest
import torch

from sparse_detr.analysis.certificate import (
    Certifier,
    Choice,
    Comparison,
    Flips,
    batches_of,
    chosen_first,
    exceptions_of,
    flips_of,
    largest,
    places_of,
    rounding_of,
)
from sparse_detr.cli.certify import in_form
from tests.modeling.tiny import build, make_pyramid, picture

PICTURES = [picture(96, 64), picture(70, 125)]


def choice(scores, chosen, levels=None):
    levels = None if levels is None else torch.tensor(levels)
    return Choice("tokens", torch.tensor([scores]), torch.tensor([chosen], dtype=torch.bool), levels)


def failures(model, dtype=torch.float32, form="plain", change=None, budget=None):
    """Return {comparison: failures} of a model in some dtype, in which `change(model)` plants an error."""
    certifier = Certifier(model.double().eval(), batches_of(PICTURES, 2), budget, draws=1)
    formed = in_form(model, form, dtype)
    if change is not None:
        change(formed)
    found = certifier.comparisons(formed, certifier.allowed(dtype))
    return {comparison.what: comparison.failures for comparison in found}


def test_a_flip_inside_of_the_band_counts_as_inside():
    reference = choice([3.0, 2.0, 1.9, 0.0], [1, 1, 0, 0])
    found = choice([3.0, 1.9, 2.0, 0.0], [1, 0, 1, 0])
    # scores differ by 0.1, so the band reaches 0.2 around the threshold of 2.0: the second and the third token
    flips = flips_of(found, reference)
    assert (flips.outside, flips.inside, flips.flipped) == (0, 2, 2)
    assert flips.band == pytest.approx(0.2)
    assert flips.share == 1.0


def test_a_flip_outside_of_the_band_counts_as_outside():
    reference = choice([3.0, 2.0, 1.0, 0.0], [1, 1, 0, 0])
    found = choice([3.0, 2.0, 1.0, 0.1], [1, 1, 0, 1])  # scores differ by 0.1, the band is 1.8 to 2.2
    flips = flips_of(found, reference)
    assert (flips.outside, flips.inside, flips.flipped) == (1, 1, 0)


def test_every_level_has_a_threshold_of_its_own():
    scores = [5.0, 4.0, 1.0, 0.5]
    reference = choice(scores, [1, 0, 1, 0], levels=[0, 0, 1, 1])
    found = choice([5.0, 4.0, 1.0, 0.5], [1, 0, 0, 1], levels=[0, 0, 1, 1])
    assert flips_of(found, reference).outside == 1  # the third token is the threshold itself, the last lies outside
    assert flips_of(reference, reference) == Flips(0, 2, 0, 0.0)


def test_padding_is_no_choice():
    reference = choice([1.0, float("-inf")], [1, 0])
    found = choice([1.0, float("-inf")], [1, 1])
    assert flips_of(found, reference).outside == 0


def test_where_all_tokens_are_chosen_every_difference_is_outside():
    assert flips_of(choice([1.0, 1.0], [1, 0]), choice([1.0, 1.0], [1, 1])).outside == 1


def test_the_largest_difference_of_a_number_and_none_is_infinite():
    assert largest(torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])) == float("inf")
    assert largest(torch.tensor([float("-inf"), 2.5]), torch.tensor([float("-inf"), 2.0])) == 0.5
    assert largest(torch.ones(0), torch.ones(0)) == 0.0


def test_a_difference_that_is_no_number_fails():
    comparison = Comparison("alone", {"logits": float("inf")}, {"logits": 1.0})
    assert comparison.failures == ["logits differ by inf, allowed is 1"]


def test_tokens_keep_their_cell_in_a_larger_batch():
    alone = make_pyramid(((2, 2), (1, 1)))
    batch = make_pyramid(((2, 3), (1, 2)), ((2, 3), (1, 2)), ((2, 2), (1, 1)))
    places, shared = places_of(alone, batch, 1)
    assert places.tolist() == [0, 1, 3, 4, 6]
    assert shared.all()


def test_earlier_choices_come_first_and_in_their_order():
    raised = chosen_first(torch.tensor([[0.1, 0.9, 0.5, 0.2]]), [torch.tensor([3, 0])])
    assert raised.topk(4).indices.tolist() == [[3, 0, 1, 2]]


def test_images_of_one_size_are_cut_so_that_a_batch_has_padding():
    batch = batches_of([picture(60, 90), picture(60, 90, seed=1), picture(60, 90, seed=2)], 3)[0]
    assert [tuple(one["image"].shape[-2:]) for one in batch] == [(60, 90), (60, 60), (60, 90)]
    assert [tuple(one["image"].shape[-2:]) for one in batches_of([picture(60, 90)], 2)[0]] == [(60, 90), (60, 60)]


def test_rounding_changes_a_model_by_its_dtype_and_leaves_the_model_alone():
    model = build("sparse").eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    coarse, fine = (rounding_of(model, dtype, 0) for dtype in (torch.bfloat16, torch.float32))
    with torch.no_grad():
        expected, *found = (m.outputs(PICTURES[:1]).token_scores for m in (model, coarse, fine))
    assert largest(found[0], expected) > 1e-4
    assert 1e-9 < largest(found[1], expected) < 1e-4
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("sparse", torch.bfloat16),
        ("focus_two_stage", torch.float64),
        ("focus_two_stage", torch.float32),
        ("detr", torch.float64),
        ("pnp", torch.float32),
    ],
)
def test_a_model_that_keeps_its_promise_passes(name, dtype):
    found = failures(build(name), dtype)
    assert set(found) == {
        "alone, against float64",
        "in a padded batch",
        "in a batch without padding",
        "in a padded batch, with its backbone",
    }
    assert not any(found.values())


@pytest.mark.parametrize("budget", [0.1, "levels:0.1,0.5,1,1", "mass:0.8"])
def test_every_budget_passes_in_both_forms(budget):
    assert not any(failures(build("sparse"), budget=budget, form="optimized").values())


def test_a_planted_dependence_on_the_batch_fails_in_the_padded_batch_alone():
    def plant(model):
        network = model.selector.scorer.network
        network.mean_over = "all"  # the mean over padding, as in the public code

    found = failures(build("sparse"), change=plant)
    assert found["in a padded batch"]
    assert "scores differ" in found["in a padded batch"][0]
    assert not found["in a batch without padding"]
    assert not found["alone, against float64"]


def test_a_backbone_that_mixes_images_fails_without_padding():
    def plant(model):
        model.backbone.levels[0].register_forward_hook(lambda module, inputs, x: x + 0.01 * x.mean(0, keepdim=True))

    found = failures(build("sparse"), change=plant)
    assert found["in a batch without padding"]


def test_a_planted_half_precision_layer_fails_against_float64():
    def plant(model):
        layer = model.encoder.layers[0].ffn
        layer.register_forward_hook(lambda module, inputs, output: output.bfloat16().to(output))

    found = failures(build("sparse"), change=plant)
    assert any("logits differ" in text for text in found["alone, against float64"])


def test_released_parts_are_named_and_fail():
    model = build("focus_two_stage", behavior="released")
    named = "\n".join(exceptions_of(model))
    assert "BatchCascadedBudget" in named
    assert "MultiScaleTokenizer(padding='released')" in named
    assert failures(model, torch.float64)["in a padded batch"]
    assert exceptions_of(build("focus_two_stage")) == []


def test_random_scores_are_named_and_not_compared():
    model = build("random")
    assert "RandomScorer" in exceptions_of(model)[0]
    assert not any(failures(model, torch.float64).values())
