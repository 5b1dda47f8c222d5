"""The geometry of a small pyramid, by hand: a 2x3 and a 1x2 level, two images."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.structures import Pyramid

CPU = torch.device("cpu")


@pytest.fixture
def pyramid():
    """Make a pyramid; image 0 fills 1x2 of the 2x3 level and 1x1 of the 1x2 level, image 1 fills both."""
    return Pyramid.of(((2, 3), (1, 2)), (((1, 2), (1, 1)), ((2, 3), (1, 2))), device=CPU)


def test_cells_run_level_by_level_and_row_by_row(pyramid):
    cells = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2], [1, 0, 0], [1, 0, 1]]
    assert pyramid.cells.tolist() == cells
    assert pyramid.num_tokens == 8


def test_padding_is_what_lies_right_of_or_below_the_image(pyramid):
    mask = pyramid.padding_mask.int().tolist()
    assert mask == [[0, 0, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0]]
    assert pyramid.valid_counts == [3, 8]
    assert pyramid.has_padding


def test_a_batch_of_equal_images_has_no_padding():
    pyramid = Pyramid.of(((2, 3),), (((2, 3),),) * 2, device=CPU)
    assert not pyramid.has_padding
    assert not pyramid.padding_mask.any()


def test_valid_ratios_are_width_then_height(pyramid):
    expected = torch.tensor([[[2 / 3, 1 / 2], [1 / 2, 1]], [[1, 1], [1, 1]]], dtype=torch.float64)
    assert_close(pyramid.valid_ratios(torch.float64), expected)


def test_centers_are_x_then_y_of_the_unpadded_image_and_exceed_one_on_padding(pyramid):
    centers = pyramid.centers(torch.float64)
    assert_close(centers[0, 1], torch.tensor([0.75, 0.5], dtype=torch.float64))
    assert_close(centers[0, 5], torch.tensor([1.25, 1.5], dtype=torch.float64))
    assert_close(centers[1, 5], torch.tensor([5 / 6, 0.75], dtype=torch.float64))
    assert_close(centers[1, 7], torch.tensor([0.75, 0.5], dtype=torch.float64))
    assert bool(((centers > 1).any(-1) == pyramid.padding_mask).all())


def test_split_cuts_tokens_at_the_levels(pyramid):
    first, second = pyramid.split(torch.arange(16).view(2, 8))
    assert first.tolist() == [[0, 1, 2, 3, 4, 5], [8, 9, 10, 11, 12, 13]]
    assert second.tolist() == [[6, 7], [14, 15]]


def test_token_valid_sizes_are_those_of_the_level_of_the_token(pyramid):
    sizes = pyramid.token_valid_sizes[0].tolist()
    assert sizes == [[1, 2]] * 6 + [[1, 1]] * 2
