"""The model of every registered recipe gives in inference form what it gives as it is, in every precision.

Where a model keeps some tokens, the kept ones are compared by the rule of the boundary band: outside of a band round
the lowest kept score they must be the same, inside it only few may differ.
"""

import warnings

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.inference import optimize
from sparse_detr.modeling.queries import TopKQueries
from sparse_detr.recipes import RECIPES
from tests.modeling.tiny import picture
from tests.recipes.test_every_recipe import BATCH, build

every_recipe = pytest.mark.parametrize("name", RECIPES)
WITHIN = {torch.float32: 1e-4, torch.bfloat16: 0.6}
"""Largest median distance from the logits of a query, which are about 5, to those of the nearest query; a few queries
start from other tokens in half precision."""
BAND = {torch.float32: 1e-5, torch.bfloat16: 0.05}
"""Half the width of the band, as a share of the standard deviation of the scores."""


def outputs(model, pictures, **options):
    with torch.no_grad():
        return model.outputs(pictures, **options)


def optimized(model, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "this CPU has no instructions for bfloat16")
        return optimize(model, **options)


def rows(output, image):
    """Return the logits and boxes of the queries that count."""
    group = output.predictions
    own = slice(None) if group.valid is None else group.valid[image]
    return group.logits[image][own], group.boxes[image][own]


@every_recipe
@pytest.mark.parametrize("pictures", [BATCH, BATCH[:1]], ids=["padded", "alone"])
def test_in_double_precision_all_results_are_the_same(name, pictures):
    model = build(name).eval()
    found, expected = outputs(optimize(model), pictures), outputs(model, pictures)
    for image in range(len(pictures)):
        for result, wanted in zip(rows(found, image), rows(expected, image), strict=True):
            assert_close(result, wanted, atol=1e-9, rtol=0)
    assert torch.equal(found.selection.keep, expected.selection.keep)
    if expected.attention_map is not None:
        assert_close(found.attention_map, expected.attention_map, atol=1e-9, rtol=0)


def flips_outside_and_inside(found, expected, band):
    """Return how many kept tokens differ outside of the band, and the share of those inside that do."""
    valid = ~expected.pyramid.padding_mask
    keep, other, scores = expected.selection.keep & valid, found.selection.keep & valid, expected.token_scores
    outside = inside = flips = 0
    for image in range(len(scores)):
        boundary, spread = scores[image][keep[image]].min(), scores[image][valid[image]].std()
        near = (scores[image] - boundary).abs() <= band * spread
        flipped = keep[image] != other[image]
        outside += int((flipped & ~near).sum())
        inside, flips = inside + int((near & valid[image]).sum()), flips + int((flipped & near).sum())
    return outside, flips / max(inside, 1)


@every_recipe
@pytest.mark.parametrize("dtype", WITHIN)
def test_in_single_and_half_precision_results_are_near(name, dtype):
    model = build(name).float().eval()
    found, expected = outputs(optimized(model, dtype=dtype), BATCH), outputs(model, BATCH)
    distance = torch.cdist(found.predictions.logits, expected.predictions.logits).amin(-1).median()
    assert distance < WITHIN[dtype]
    assert (found.predictions.logits.dtype, found.predictions.boxes.dtype) == (torch.float32, torch.float32)
    assert torch.equal(found.selection.counts, expected.selection.counts)
    if expected.token_scores is not None:
        outside, share = flips_outside_and_inside(found, expected, BAND[dtype])
        assert outside == 0
        assert share <= 0.5


@every_recipe
def test_an_image_of_one_token_a_level_is_searched(name):
    model, batch = build(name).eval(), [picture(7, 5)]
    found, expected = outputs(optimize(model), batch), outputs(model, batch)
    assert_close(found.predictions.logits, expected.predictions.logits, atol=1e-9, rtol=0)
    if isinstance(model.queries, TopKQueries):
        assert found.predictions.logits.shape[1] == found.pyramid.num_tokens


@every_recipe
def test_the_given_model_stays_as_it_is(name):
    model = build(name).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [parameter.requires_grad for parameter in model.parameters()]
    modules = [type(module) for module in model.modules()]
    outputs(optimize(model), BATCH[:1])
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == gradients
    assert [type(module) for module in model.modules()] == modules
