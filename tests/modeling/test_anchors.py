"""Learned boxes as queries: their order, their gradients, and fixed centres."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.modeling.queries.anchors import Anchors, FixedCenterAnchors, LearnedAnchors
from tests.modeling.tiny import build, picture

MEMORY = torch.zeros(3, 7, 4)
BATCH = [picture(64, 96), picture(96, 64, boxes=((0.2, 0.2, 0.6, 0.6),))]


def ask(queries):
    return queries(MEMORY, None)


def fill_in_order(weight):
    """Fill a parameter with 0, 1, 2, ..."""
    with torch.no_grad():
        weight.copy_(torch.arange(float(weight.numel())).view_as(weight))


def test_anchors_are_boxes_for_every_image_without_a_position():
    queries = LearnedAnchors(anchors=Anchors(num_anchors=5), embed_dim=4)
    made = ask(queries)
    assert made.position is None
    assert made.valid is None
    assert torch.equal(made.content, torch.zeros(3, 5, 4))
    assert_close(made.reference_points, queries.anchors.logits.sigmoid().expand(3, -1, -1))


def test_gradients_reach_the_anchors_through_their_boxes():
    queries = LearnedAnchors(anchors=Anchors(num_anchors=5), embed_dim=4)
    ask(queries).reference_points.sum().backward()
    share = queries.anchors.logits.sigmoid()
    assert_close(queries.anchors.logits.grad, 3 * share * (1 - share))


def test_all_anchors_take_the_first_pattern_before_any_takes_the_second():
    queries = LearnedAnchors(anchors=Anchors(num_anchors=3), embed_dim=2, num_patterns=2)
    fill_in_order(queries.patterns.weight)
    made = ask(queries)
    assert made.content[0].tolist() == [[0, 1]] * 3 + [[2, 3]] * 3
    boxes = queries.anchors.logits.sigmoid()
    assert torch.equal(made.reference_points[1], torch.cat([boxes, boxes]))


def test_patterns_are_added_to_the_learned_content_of_the_anchors():
    queries = LearnedAnchors(anchors=Anchors(num_anchors=3), embed_dim=2, content="learned", num_patterns=2)
    assert not queries.content.weight.any()
    fill_in_order(queries.content.weight)
    with torch.no_grad():
        queries.patterns.weight.copy_(torch.tensor([[10.0, 10.0], [100.0, 200.0]]))
    expected = [[10, 11], [12, 13], [14, 15], [100, 201], [102, 203], [104, 205]]
    assert ask(queries).content[2].tolist() == expected


def test_initial_logits_have_the_named_distribution():
    torch.manual_seed(0)
    normal, centers, uniform = (
        Anchors(num_anchors=4000, start=start).logits.detach() for start in ("normal", "uniform_centers", "uniform")
    )
    assert_close(normal.std(0), torch.ones(4), atol=0.05, rtol=0)
    assert_close(centers[:, 2:].std(0), torch.ones(2), atol=0.05, rtol=0)
    for even in (centers[:, :2].sigmoid(), uniform.sigmoid()):
        quarters = torch.histc(even, bins=4, min=0, max=1) / even.numel()
        assert_close(quarters, torch.full((4,), 0.25), atol=0.02, rtol=0)
    assert uniform.abs().max() == 3


@pytest.mark.parametrize("name", ["dab", "dab_deformable"])
@pytest.mark.parametrize("frozen", [True, False])
def test_fixed_centres_stay_under_adamw_with_weight_decay_and_others_move(name, frozen):
    model = build(name, freeze_centers=frozen)
    assert isinstance(model.queries.anchors, FixedCenterAnchors if frozen else Anchors)
    before = model.queries.anchors().detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        sum(model.losses(BATCH).values()).backward()
        optimizer.step()
    moved = (model.queries.anchors() - before).abs()
    assert bool((moved[:, 2:] > 0).all())
    assert bool((moved[:, :2] > 0).all()) != frozen
    assert bool((moved[:, :2] == 0).all()) == frozen


def test_fixed_centres_are_saved_with_the_model():
    first, second = (build("dab", freeze_centers=True, seed=seed) for seed in (1, 2))
    assert not torch.equal(first.queries.anchors(), second.queries.anchors())
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.queries.anchors(), second.queries.anchors())


def test_fixed_centres_load_the_weights_of_learned_centres():
    """Public weights with "fixed" centres hold such anchors."""
    free, fixed = build("dab", seed=1), build("dab", freeze_centers=True, seed=2)
    weights = free.state_dict()
    assert fixed.load_state_dict(weights) == ([], [])
    assert torch.equal(fixed.queries.anchors(), free.queries.anchors())
    assert "queries.anchors.logits" in weights
