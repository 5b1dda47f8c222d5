"""The attention map against plain loops and hand-solved samples."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.ops import splat_attention
from tests.ops.reference import random_samples, splat

SHAPES = ((4, 6), (2, 3))


def splat_one(x, y, **options):
    """The (4, 6) map of one sample of weight 1, at pixel edge (x, y)."""
    location = torch.tensor([x / 6, y / 4], dtype=torch.float64).view(1, 1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    return splat_attention(((4, 6),), location, weight, **options).view(4, 6)


def test_a_sample_on_a_cell_centre_credits_exactly_that_cell():
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1, 2] = 1
    assert_close(splat_one(2.5, 1.5), expected, atol=1e-12, rtol=0)


def test_without_the_half_pixel_the_same_sample_is_spread_over_four_cells():
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1:3, 2:4] = 0.25
    assert_close(splat_one(2.5, 1.5, pixel_offset=0.0), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("x", "y", "mass"), [(0.0, 2.0, 0.5), (0.0, 0.0, 0.25), (6.0, 4.0, 0.25), (-0.5, 2, 0), (90, 2, 0)]
)
def test_what_falls_outside_is_dropped(x, y, mass):
    assert splat_one(x, y).sum().item() == pytest.approx(mass, abs=1e-12)


@pytest.mark.parametrize("pixel_offset", [-0.5, 0.0])
def test_equals_plain_loops(pixel_offset):
    locations, weights = random_samples(SHAPES)
    result = splat_attention(SHAPES, locations, weights, pixel_offset=pixel_offset)
    assert_close(result, splat(SHAPES, locations, weights, pixel_offset), atol=1e-12, rtol=0)


def test_the_mass_is_the_attention_when_every_sample_lies_well_inside():
    # At least half a pixel from every border of the coarsest level, 2 x 3.
    locations, weights = random_samples(SHAPES, low=0.25, high=0.75)
    assert_close(splat_attention(SHAPES, locations, weights).sum(1), weights.sum((1, 2, 3, 4)))


def test_it_is_the_gradient_of_reading_a_map_of_ones():
    from sparse_detr.ops import multi_scale_deformable_attention

    locations, weights = random_samples(SHAPES)
    value = torch.ones(2, 30, 2, 1, dtype=torch.float64, requires_grad=True)
    multi_scale_deformable_attention(value, SHAPES, locations, weights).sum().backward()
    assert_close(splat_attention(SHAPES, locations, weights), value.grad.sum((2, 3)))


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}])
def test_no_samples_give_an_empty_map(sizes):
    locations, weights = random_samples(SHAPES, **sizes)
    received = splat_attention(SHAPES, locations, weights)
    assert received.shape == (sizes.get("batch", 2), 30)
    assert not received.any()


def test_wrong_shapes_are_refused_by_the_name_of_the_argument():
    locations, weights = random_samples(SHAPES)
    with pytest.raises(ValueError, match="attention_weights must have the shape"):
        splat_attention(SHAPES, locations, weights[..., :1])
    with pytest.raises(ValueError, match="sampling_locations has 2 levels, spatial_shapes has 1"):
        splat_attention(SHAPES[:1], locations, weights)
