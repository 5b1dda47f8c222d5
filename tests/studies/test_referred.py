"""The share of tokens that the decoder refers to, from sampling points placed by hand."""

import pytest
import torch

from sparse_detr.studies.referred import ratios_of, summary_of, watch_samples
from tests.modeling.tiny import build, make_pyramid, picture

PYRAMID = make_pyramid(((2, 2), (1, 1)))


def points(first_level, second_level):
    """Return (1, Q, 1, 2, 1, 2) sampling points of one query each, on both levels."""
    return torch.tensor([first_level, second_level], dtype=torch.float64).transpose(0, 1)[None, :, None, :, None]


def test_a_point_marks_the_cell_that_it_lies_in():
    # cells of level 0: (0, 0) twice, and a point outside of the image; level 1: its one cell
    locations = points([(0.1, 0.1), (0.4, 0.2), (1.2, 0.5)], [(0.9, 0.9), (-0.1, 0.5), (0.5, 0.5)])
    attention = torch.tensor([[3.0, 1.0, 0.0, 0.0, 0.5]])
    found = ratios_of(locations, attention, PYRAMID)
    assert found["ratio"] == 2 / 5
    assert found["levels"] == [1 / 4, 1.0]
    assert found["bilinear"] == 3 / 5
    assert found["density"] == 3 / 4


def test_the_fewest_tokens_that_hold_most_of_the_attention_are_counted():
    locations = points([(0.1, 0.1)], [(0.5, 0.5)])
    few, even = torch.tensor([[9.5, 0.2, 0.1, 0.1, 0.1]]), torch.ones(1, 5)
    assert ratios_of(locations, few, PYRAMID)["most"] == 1 / 5
    assert ratios_of(locations, even, PYRAMID)["most"] == 1.0


def test_padding_counts_neither_as_token_nor_as_hit():
    padded = make_pyramid(((2, 2), (1, 1)), ((2, 1), (1, 1)))
    locations = points([(0.1, 0.1), (0.9, 0.1)], [(0.5, 0.5), (0.5, 0.5)])
    found = ratios_of(locations, torch.ones(1, 5), padded)
    assert found["ratio"] == 2 / 3
    assert found["levels"] == [1 / 2, 1.0]


def test_means_are_over_images_not_over_tokens():
    images = [{"ratio": r, "bilinear": r, "most": r, "levels": [r], "density": 1.0} for r in (0.2, 0.6)]
    assert summary_of(images)["ratio"] == pytest.approx(0.4)
    assert summary_of(images)["ratios"] == [0.2, 0.6]


def test_the_samples_of_a_run_are_collected_and_nothing_stays_behind():
    model = build("topk").eval()
    with watch_samples(model) as samples, torch.no_grad():
        output = model.outputs([picture(96, 64)])
    assert len(samples) == 2  # decoder layers
    locations = torch.cat([layer.locations for layer in samples], 1)
    found = ratios_of(locations, output.attention_map, output.pyramid)
    assert 0 < found["ratio"] <= 1
    assert not model.attention_map._forward_pre_hooks
