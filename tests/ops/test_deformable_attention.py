"""The op against plain loops, hand-solved points and its own edges."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.ops import multi_scale_deformable_attention
from tests.ops.reference import attend, random_samples, random_value

SHAPES = ((4, 6), (2, 3), (1, 1))


def read_points(points, height=2, width=3):
    """What one head with one channel reads of the map 1, 2, 3, ... at (x, y) pixel edges `points`."""
    value = torch.arange(1.0, height * width + 1, dtype=torch.float64).view(1, -1, 1, 1)
    locations = torch.tensor(points, dtype=torch.float64) / torch.tensor([width, height])
    weights = torch.ones(1, len(points), 1, 1, 1, dtype=torch.float64)
    return multi_scale_deformable_attention(value, ((height, width),), locations.view(1, -1, 1, 1, 1, 2), weights)


def test_equals_plain_loops_inside_and_outside_of_the_maps():
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    expected = attend(value, SHAPES, locations, weights)
    assert_close(multi_scale_deformable_attention(value, SHAPES, locations, weights), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.5, 0.5), 1.0),  # centre of the first cell
        ((2.5, 1.5), 6.0),  # centre of the last
        ((1.0, 0.5), 1.5),  # edge between the first two cells
        ((1.0, 1.0), 3.0),  # corner of four cells: (1 + 2 + 4 + 5) / 4
        ((0.0, 0.5), 0.5),  # border of the map: half of what is read is outside
        ((0.0, 0.0), 0.25),
        ((3.0, 2.0), 1.5),
        ((-0.5, 0.5), 0.0),  # a whole pixel outside
        ((3.5, 1.5), 0.0),
        ((-40.0, 90.0), 0.0),
    ],
)
def test_reads_by_hand_at_centres_edges_borders_and_outside(point, expected):
    assert read_points([point]).item() == pytest.approx(expected, abs=1e-12)


def test_gradients_equal_finite_differences():
    shapes = ((3, 4), (2, 2))
    # Kept off the pixel edges, where the derivative jumps.
    locations, weights = random_samples(shapes, queries=2, seed=4)
    arguments = (random_value(shapes), locations, weights)
    arguments = tuple(x.requires_grad_() for x in arguments)
    assert torch.autograd.gradcheck(lambda v, x, w: multi_scale_deformable_attention(v, shapes, x, w), arguments)


def test_is_linear_in_value_and_in_weights():
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    other = random_value(SHAPES, seed=7)

    def run(v, w):
        return multi_scale_deformable_attention(v, SHAPES, locations, w)

    assert_close(run(value + 2 * other, weights), run(value, weights) + 2 * run(other, weights))
    assert_close(run(value, 3 * weights), 3 * run(value, weights))


def test_permuting_queries_permutes_the_output():
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    order = torch.tensor([2, 0, 1])
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    permuted = multi_scale_deformable_attention(value, SHAPES, locations[:, order], weights[:, order])
    assert torch.equal(permuted, output[:, order])


def test_non_contiguous_arguments_give_the_same():
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    other = locations.flip(-1).contiguous().flip(-1).transpose(0, 1).contiguous().transpose(0, 1)
    every_second = weights.repeat_interleave(2, 0)[::2]
    assert not strided.is_contiguous()
    assert not other.is_contiguous()
    assert_close(
        multi_scale_deformable_attention(strided, SHAPES, other, every_second),
        multi_scale_deformable_attention(value, SHAPES, locations, weights),
    )


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}])
def test_nothing_to_read_gives_an_empty_output(sizes):
    locations, weights = random_samples(SHAPES, **sizes)
    value = random_value(SHAPES, batch=sizes.get("batch", 2)).requires_grad_()
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights)
    assert output.shape == (sizes.get("batch", 2), sizes.get("queries", 3), 6)
    output.sum().backward()
    assert not value.grad.any()


def test_one_level_with_one_point_reads_one_map():
    shapes = ((3, 5),)
    value, (locations, weights) = random_value(shapes), random_samples(shapes, points=1)
    expected = attend(value, shapes, locations, weights)
    assert_close(multi_scale_deformable_attention(value, shapes, locations, weights), expected)


def test_wrong_shapes_are_refused_by_the_name_of_the_argument():
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    with pytest.raises(ValueError, match=r"value has 30 tokens.*add up to 31"):
        multi_scale_deformable_attention(value[:, 1:], SHAPES, locations, weights)
    with pytest.raises(ValueError, match=r"value must be \(B, N, M, D\)"):
        multi_scale_deformable_attention(value.flatten(2), SHAPES, locations, weights)
    with pytest.raises(ValueError, match=r"sampling_locations must be \(B, Q, M, L, P, 2\)"):
        multi_scale_deformable_attention(value, SHAPES, locations[..., :1], weights)
    with pytest.raises(ValueError, match="sampling_locations has 2 levels, spatial_shapes has 3"):
        multi_scale_deformable_attention(value, SHAPES, locations[:, :, :, :2], weights[:, :, :, :2])
    with pytest.raises(ValueError, match="attention_weights must have the shape"):
        multi_scale_deformable_attention(value, SHAPES, locations, weights[:, :2])


@pytest.mark.parametrize("argument", ["batch", "heads"])
def test_samples_of_other_images_or_heads_than_the_value_are_refused(argument):
    locations, weights = random_samples(SHAPES)
    value = random_value(SHAPES, **{argument: 4})
    with pytest.raises(ValueError, match=r"value must be \(B, N, M, D\) with the 2 images and 2 heads"):
        multi_scale_deformable_attention(value, SHAPES, locations, weights)
