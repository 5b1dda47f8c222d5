"""Token maps cover the image without its padding, and are fused at the size of the image."""

from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from sparse_detr.visualization.token_maps import enlarge, fused_attention, fused_scores, token_maps


def test_maps_leave_the_padding_out(sparse_output):
    scores = token_maps(sparse_output).scores
    assert scores[0].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9], [12, 13, 14, 15]]
    assert scores[1].tolist() == [[24, 25], [27, 28]]


def test_kept_tokens_lie_in_their_cells_and_kept_shares_are_of_valid_tokens(sparse_output):
    maps = token_maps(sparse_output)
    assert [np.argwhere(level).tolist() for level in maps.kept] == [[[0, 1]], [[0, 1]]]
    assert maps.kept_shares == pytest.approx([1 / 12, 1 / 4])
    assert maps.kept_share == pytest.approx(2 / 16)
    assert maps.covered_attention == pytest.approx(2 / 16)


def test_pooling_weights_lie_in_the_cells_of_their_tokens(sparse_output, pooled_output):
    first, second = token_maps(pooled_output).pooling
    assert first[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert not first[1].any()
    assert (second[0][0, 0], second[1][0, 0]) == (0.5, 0.5)
    assert token_maps(sparse_output).pooling is None


def test_a_dense_encoder_keeps_everything_and_has_no_scores(dense_output):
    maps = token_maps(dense_output)
    assert maps.scores is None
    assert maps.kept_share == 1
    assert all(level.all() for level in maps.kept)


def test_the_covered_attention_is_undefined_without_an_attention_map(sparse_output):
    maps = token_maps(replace(sparse_output, attention_map=None))
    assert maps.attention is None
    assert isnan(maps.covered_attention)


def test_a_cell_covers_its_even_share_of_the_image():
    cells = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert enlarge(cells, (4, 6)).tolist() == np.kron(cells, np.ones((2, 3))).tolist()


def test_fused_scores_are_the_mean_of_the_levels():
    assert np.array_equal(fused_scores([np.zeros((2, 2)), np.ones((1, 1))], (2, 2)), np.full((2, 2), 0.5))


def test_fused_attention_spreads_a_coarse_token_over_its_area():
    fused = fused_attention([np.ones((2, 2)), np.full((1, 1), 8.0)], (4, 4))
    assert np.allclose(fused, 1 + 8 / 4)
