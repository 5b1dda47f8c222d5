"""Pages show the tokens where they are, for every kind of detector."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sparse_detr.structures import CoarseTokens, PolledTokens
from sparse_detr.visualization import (
    attention_heat,
    heat_page,
    kept_tokens_page,
    overview_page,
    pooled_tokens_page,
    pooling_heat,
    sampled_points_page,
    score_heat,
    token_maps,
)
from sparse_detr.visualization.views import _kept_picture, _kept_remark, _points_picture

IMAGE = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)


def is_page(page: np.ndarray) -> bool:
    return page.dtype == np.uint8 and page.shape[1:] == (1600, 3) and bool((page[0] == 255).all())


def test_kept_cells_keep_their_colours_and_the_rest_is_dimmed_and_grey():
    image = np.full((1280, 1280, 3), (200, 100, 0), np.uint8)
    picture = _kept_picture(image, np.array([[True, False], [False, False]]), np.zeros((2, 2), bool))
    assert (picture[:630, :630] == image[0, 0]).all()
    assert (picture[640:] == picture[640, 640]).all()
    assert picture[640, 640].max() == picture[640, 640].min() < 50


def test_object_tokens_are_tinted_and_framed_in_a_colour_of_their_own():
    """Left: objects; right: other kept tokens. Blue, 255, is of the object colour alone."""
    image = np.zeros((640, 1280, 3), np.uint8)
    picture = _kept_picture(image, np.array([[True, True]]), np.array([[True, False]]))
    assert picture[320, 320].tolist() == [0, 66, 89]
    assert picture[320, 960].tolist() == [0, 0, 0]
    assert picture[320, 639].tolist() == [0, 190, 255]


def test_a_page_with_object_tokens_explains_both_colours(sparse_output):
    objects = torch.zeros(1, 30, dtype=torch.bool)
    objects[0, 1] = True
    plain, explained = (kept_tokens_page(IMAGE, token_maps(sparse_output, objects=o)) for o in (None, objects))
    assert explained.shape[0] > plain.shape[0]
    for color in ((255, 205, 40), (0, 190, 255)):
        legend = (explained[100:160, :900] == color).all(-1)
        assert legend.sum() > 200
    assert is_page(overview_page(IMAGE, IMAGE, token_maps(sparse_output, objects=objects), title="image"))


def test_sampled_points_are_squares_where_they_lie_and_those_outside_are_left_out(dense_output):
    """(0.5, 0.25) of a picture of 1280 x 640 pixels is column 640 and row 160."""
    points = torch.tensor([[[0.5, 0.25], [1.2, 0.5], [0.0, -0.1]]])
    maps = token_maps(dense_output, points={1: points, 2: points})
    marked = (_points_picture(np.zeros((320, 640, 3), np.uint8), maps.points[1]) == (255, 205, 40)).all(-1)
    assert np.argwhere(marked).tolist() == [[row, column] for row in range(155, 165) for column in range(635, 645)]
    assert is_page(sampled_points_page(IMAGE, maps))
    overviews = [overview_page(IMAGE, IMAGE, one, title="image") for one in (token_maps(dense_output), maps)]
    assert overviews[1].shape[0] > overviews[0].shape[0]


def test_every_page_of_a_sparse_detector_can_be_drawn(sparse_output):
    maps = token_maps(sparse_output)
    assert is_page(kept_tokens_page(IMAGE, maps))
    assert is_page(heat_page(IMAGE, score_heat(IMAGE, maps)))
    assert is_page(heat_page(IMAGE, attention_heat(IMAGE, maps)))
    assert is_page(overview_page(IMAGE, IMAGE, maps, title="image"))


def test_a_detector_that_selects_levels_shows_them_and_no_scores(dense_output):
    output = replace(dense_output, selection=CoarseTokens(dense_output.pyramid, 24, (False, True, False, True)))
    maps = token_maps(output)
    assert (list(maps.kept_shares), list(maps.full_layers)) == ([0.0, 1.0], [2, 4])
    assert _kept_remark(maps).endswith("; all are refined in encoder layer 2, 4")
    assert score_heat(IMAGE, maps) is None
    assert is_page(kept_tokens_page(IMAGE, maps))
    levels, dense = (overview_page(IMAGE, IMAGE, m, title="image") for m in (maps, token_maps(dense_output)))
    assert levels.shape[0] > dense.shape[0]


@pytest.mark.parametrize("number", [1, 2, 6, 40])
def test_any_number_of_pooled_tokens_can_be_drawn(pooled_output, number):
    """A row has six; of more than thirty pooled tokens thirty are shown."""
    pooling = pooled_output.selection.pooling.repeat(1, -(-number // 2), 1)[:, :number]
    output = replace(pooled_output, selection=PolledTokens.polled(pooled_output.selection, pooling))
    page = pooled_tokens_page(IMAGE, token_maps(output))
    assert is_page(page)
    row = 36 + 242 * 3 // 4 + 20  # title, picture of 320 x 240 in a sixth of the width, gap
    empty = pooled_tokens_page(IMAGE, token_maps(pooled_output)).shape[0]
    assert abs(page.shape[0] - empty - (min(-(-number // 6), 5) - 1) * row) < 12


def test_the_pooling_heat_is_the_mean_weight_of_the_pooled_tokens(pooled_output, sparse_output):
    fine, coarse = pooling_heat(IMAGE, token_maps(pooled_output)).levels
    assert (fine[0, 0], fine[1, 1], coarse[0, 0]) == (0.25, 0.5, 0.25)
    assert pooling_heat(IMAGE, token_maps(sparse_output)) is None
    assert is_page(overview_page(IMAGE, IMAGE, token_maps(pooled_output), title="image"))


def test_a_dense_detector_has_no_scores_to_show_but_an_overview(dense_output):
    maps = token_maps(dense_output)
    assert score_heat(IMAGE, maps) is None
    assert is_page(overview_page(IMAGE, IMAGE, maps, title="image"))


def test_the_overview_leaves_the_attention_out_if_there_is_no_map(sparse_output):
    maps = token_maps(replace(sparse_output, attention_map=None))
    assert attention_heat(IMAGE, maps) is None
    assert is_page(overview_page(IMAGE, IMAGE, maps, title="image"))


def test_the_colour_bar_of_the_scores_marks_the_last_kept_token(sparse_output):
    assert score_heat(IMAGE, token_maps(sparse_output)).bar.mark[0] == 1


def test_scores_that_are_all_equal_can_be_drawn(sparse_output):
    equal = replace(sparse_output, token_scores=sparse_output.token_scores * 0)
    assert is_page(heat_page(IMAGE, score_heat(IMAGE, token_maps(equal))))


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 2)])
def test_images_of_any_shape_can_be_shown(sparse_output, shape):
    image = np.zeros((*shape, 3), np.uint8)
    assert is_page(overview_page(image, image, token_maps(sparse_output), title="a long title " * 20))
