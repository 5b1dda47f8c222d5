"""Which tokens lie on a box, and which of them are selected, by hand on a small pyramid of two levels."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_detr.analysis.token_recall import selected_tokens, selection_metrics, token_recall
from sparse_detr.analysis.tokens import covered_boxes, tokens_on_boxes, watch_queries
from sparse_detr.structures import AllTokens, CoarseTokens, Targets
from tests.modeling.tiny import build, make_pyramid, picture

# Level 0: 2 x 4 cells, tokens 0..7; level 1: 1 x 2 cells, tokens 8 and 9.
SHAPES = ((2, 4), (1, 2))
LEFT_HALF = [0.25, 0.5, 0.5, 1.0]
SPECK = [0.3, 0.9, 0.01, 0.01]


def mask(*tokens):
    kept = torch.zeros(1, 10, dtype=torch.bool)
    kept[0, list(tokens)] = True
    return kept


def tokens_on(*boxes, pyramid=None):
    [on_boxes] = tokens_on_boxes([torch.tensor(boxes)], pyramid or make_pyramid(SHAPES))
    return [tokens.nonzero().flatten().tolist() for tokens in on_boxes]


def test_the_tokens_on_a_box_are_those_whose_centre_it_contains():
    assert tokens_on(LEFT_HALF) == [[0, 1, 4, 5, 8]]


def test_on_a_box_without_a_centre_lie_the_tokens_whose_cells_hold_its_own():
    assert tokens_on(SPECK) == [[5, 8]]


@pytest.mark.parametrize(("x", "y", "tokens"), [(0.0, 0.0, [0, 8]), (1.0, 1.0, [7, 9]), (0.5, 0.5, [6, 9])])
def test_a_point_on_the_border_of_cells_lies_in_one_cell_a_level(x, y, tokens):
    assert tokens_on([x, y, 0.0, 0.0]) == [tokens]


def test_padding_never_lies_on_a_box():
    pyramid = make_pyramid(SHAPES, ((2, 2), (1, 1)))
    assert tokens_on([0.5, 0.5, 1.0, 1.0], SPECK, pyramid=pyramid) == [[0, 1, 4, 5, 8], [4, 8]]


def test_the_share_of_a_box_counts_its_tokens_over_all_levels_and_of_each():
    boxes = torch.tensor([LEFT_HALF, SPECK, [0.125, 0.25, 0.2, 0.4]])  # the last holds the centre of token 0 alone
    [recall] = token_recall(mask(0, 1, 9), [boxes], make_pyramid(SHAPES))
    assert recall.share.tolist() == pytest.approx([2 / 5, 0, 1])
    assert recall.share_of_levels[:2].tolist() == [[0.5, 0], [0, 0]]
    assert recall.share_of_levels[2, 0] == 1
    assert math.isnan(recall.share_of_levels[2, 1])
    assert recall.is_hit.tolist() == [True, False, True]


def test_an_image_without_boxes_has_no_recall():
    [recall] = token_recall(mask(0), [torch.zeros(0, 4)], make_pyramid(SHAPES))
    assert (recall.share.shape, recall.share_of_levels.shape, recall.is_hit.shape) == ((0,), (0, 2), (0,))


sides = st.floats(0, 1, width=32)


@given(
    st.lists(st.tuples(sides, sides, sides, sides), min_size=1, max_size=5), st.sampled_from([(2, 4), (3, 3), (1, 1)])
)
def test_some_token_lies_on_every_box_so_that_nothing_is_missed_where_all_are_kept(corners, shape):
    pyramid = make_pyramid((shape, (1, 2)))
    xyxy = torch.tensor(corners)
    low, high = torch.minimum(xyxy[:, :2], xyxy[:, 2:]), torch.maximum(xyxy[:, :2], xyxy[:, 2:])
    boxes = torch.cat([(low + high) / 2, high - low], 1)
    [recall] = token_recall(AllTokens(pyramid).keep, [boxes], pyramid)
    assert recall.is_hit.all()
    assert (recall.share == 1).all()
    [covered] = covered_boxes(AllTokens(pyramid).keep, [boxes], pyramid)
    assert covered.all()


def test_tokens_of_levels_that_only_some_layers_refine_are_selected():
    pyramid = make_pyramid(SHAPES)
    some, none = (CoarseTokens(pyramid, start=8, full=full) for full in ((False, True), (False, False)))
    assert selected_tokens(some, pyramid).all()
    assert selected_tokens(none, pyramid)[0].nonzero().flatten().tolist() == [8, 9]


def targets_of(images):
    boxes = torch.tensor([[0.3, 0.45, 0.4, 0.5], [0.65, 0.55, 0.5, 0.5]])
    return [Targets(labels=torch.tensor([0, 1]), boxes=boxes) for _ in images]


def test_a_sparse_model_gives_all_metrics_and_they_agree_with_their_parts():
    images = [picture(96, 64), picture(64, 96)]
    output = build("sparse").eval().outputs(images)
    metrics = selection_metrics(output, targets_of(images))
    names = {"kept_share", "recall", "box_share", "correlation"}
    assert set(metrics) - names == {f"correlation_level{number}" for number in (1, 2, 3, 4)}
    assert names <= set(metrics)
    assert metrics["kept_share"] == pytest.approx(0.3, abs=0.02)
    attention, keep = output.attention_map, output.selection.keep
    expected = ((attention * keep).sum(1) / attention.sum(1)).mean().item()
    assert metrics["correlation"] == pytest.approx(expected, abs=1e-6)


def test_a_dense_model_selects_all_and_has_no_correlation_without_an_attention_map():
    images = [picture(96, 64)]
    output = build("topk").eval().outputs(images, attention_map=False)
    assert selection_metrics(output, targets_of(images)) == {"kept_share": 1.0, "recall": 1.0, "box_share": 1.0}


def test_images_without_true_boxes_have_no_recall():
    images = [picture(96, 64)]
    output = build("sparse").eval().outputs(images, attention_map=False)
    empty = [Targets(labels=torch.zeros(0, dtype=torch.long), boxes=torch.zeros(0, 4))]
    assert set(selection_metrics(output, empty)) == {"kept_share"}


def test_the_queries_that_the_decoder_starts_from_can_be_watched():
    model = build("sparse").eval()
    with watch_queries(model.decoder) as queries:
        model([picture(96, 64)])
    model([picture(96, 64)])
    assert [found.reference_points.shape for found in queries] == [(1, 12, 4)]
    assert not model.decoder._forward_pre_hooks
