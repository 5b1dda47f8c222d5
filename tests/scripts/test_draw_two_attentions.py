import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from torch.testing import assert_close

from sparse_detr.recipes import deformable_detr
from tests.modeling.tiny import SIZES
from tests.recipes.test_dat import narrow


@pytest.fixture
def script(load_script):
    return load_script("draw_two_attentions")


@pytest.fixture
def seen(script):
    torch.manual_seed(0)
    model = instantiate(deformable_detr(backbone=narrow(3), **SIZES)).eval()
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return script.observe(model, image)


def test_the_points_of_one_query_and_those_of_all_are_observed(seen):
    heads, groups, cells = 4, 2, 4  # of the third stage, whose map has 4 x 4 cells
    assert_close(seen.samples.weights.sum((1, 2)), torch.ones(len(seen.samples.weights)))
    assert seen.samples.locations.shape == (*seen.samples.weights.shape, 2)
    assert seen.points.moved.shape == (groups, cells, cells, 2)
    assert seen.weights.shape == (heads, cells * cells)
    assert_close(seen.weights.sum(1), torch.ones(heads))
    assert (seen.points.moved - seen.points.grid).abs().max() < 2 / cells  # at most a key cell


def test_the_attention_of_the_query_is_that_of_the_backbone(script, seen):
    """The query's place in the picture is the cell whose weights are drawn."""
    places = seen.points.grid.flip(-1)
    row, column = (int(place * 4) for place in script.QUERY[::-1])
    assert ((places[row, column] + 1) / 2 - torch.tensor(script.QUERY)).abs().max() <= 1 / 8


def test_costs_of_full_attention_are_those_of_a_sum_by_hand(script):
    cells = 64
    expected = 4 * cells * script.CHANNELS**2 + 2 * cells**2 * script.CHANNELS
    assert script.gigaflops(script.Full(), 8) == pytest.approx(expected / 1e9)
