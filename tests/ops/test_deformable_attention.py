"""The plain form, with given locations and weights: against plain loops, points by hand and edge cases."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_detr.ops import multi_scale_deformable_attention
from tests.ops.backends import has_second_derivatives
from tests.ops.reference import (
    TOLERANCES,
    attend,
    attend_gradients,
    random_padding,
    random_samples,
    random_value,
    relative_error,
    tolerance,
    with_gradients,
)

SHAPES = ((4, 6), (2, 3), (1, 1))
FIVE_LEVELS = ((5, 7), (4, 3), (2, 2), (1, 3), (1, 1))
# Levels and points whose product is below, equal to and above the width of a vector.
SAMPLES = [(1, 1), (1, 3), (3, 4), (4, 4), (5, 4)]


def read_points(points, height=2, width=3, **options):
    """Read the map 1, 2, 3, ... with one head and one channel at `points` (x, y), in pixels from the edge."""
    value = torch.arange(1.0, height * width + 1, dtype=torch.float64).view(1, -1, 1, 1)
    locations = torch.tensor(points, dtype=torch.float64) / torch.tensor([width, height])
    weights = torch.ones(1, len(points), 1, 1, 1, dtype=torch.float64)
    shapes = ((height, width),)
    return multi_scale_deformable_attention(value, shapes, locations.view(1, -1, 1, 1, 1, 2), weights, **options)


def check_against_loops(backend, shapes, value, locations, weights, padding=None):
    """Check output and gradients, in the dtype of `value`, against loops in float64 on the same numbers."""

    def run(*tensors):
        return multi_scale_deformable_attention(tensors[0], shapes, *tensors[1:], padding_mask=padding, backend=backend)

    output, grad_output, gradients = with_gradients(run, value, locations, weights)
    assert [output.dtype, *(x.dtype for x in gradients)] == [value.dtype, value.dtype, locations.dtype, weights.dtype]
    value, locations, weights, grad_output = (x.double().cpu() for x in (value, locations, weights, grad_output))
    if padding is not None:
        padding = padding.cpu()
        value = value.masked_fill(padding[..., None, None], 0)
    expected = attend_gradients(value, shapes, locations, weights, grad_output)
    if padding is not None:
        expected[0][padding] = 0
    assert relative_error(output, attend(value, shapes, locations, weights)) < tolerance(output)
    for gradient, other in zip(gradients, expected, strict=True):
        assert relative_error(gradient, other) < tolerance(gradient)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("padded", [False, True])
def test_output_and_gradients_equal_plain_loops(backend, dtype, padded):
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    locations, weights = (x.to(geometry) for x in random_samples(SHAPES, points=3))
    value = random_value(SHAPES, channels=8).to(dtype)
    check_against_loops(backend, SHAPES, value, locations, weights, random_padding(SHAPES) if padded else None)


@pytest.mark.parametrize("channels", [1, 3, 5, 20, 32, 33, 64])
def test_any_number_of_channels_equals_plain_loops(backend, channels):
    locations, weights = (x.float() for x in random_samples(SHAPES, heads=3))
    check_against_loops(backend, SHAPES, random_value(SHAPES, heads=3, channels=channels).float(), locations, weights)


@pytest.mark.parametrize(("levels", "points"), SAMPLES)
@pytest.mark.parametrize("queries", [1, 40])  # few and many queries for the size of the maps
def test_any_number_of_levels_and_points_equals_plain_loops(backend, levels, points, queries):
    shapes = FIVE_LEVELS[:levels]
    locations, weights = (x.float() for x in random_samples(shapes, points=points, queries=queries, batch=1))
    value = random_value(shapes, batch=1, channels=4).float()
    check_against_loops(backend, shapes, value, locations, weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_queries_that_are_few_for_the_size_of_the_maps_equal_plain_loops(backend, dtype, channels, padded):
    # The CPU kernels then read the value in place if its rows are whole vectors; otherwise they read a copy.
    shapes = ((5, 6), (4, 5), (3, 4))
    locations, weights = (x.to(dtype) for x in random_samples(shapes, queries=5, points=3))
    value = random_value(shapes, channels=channels).to(dtype)
    check_against_loops(backend, shapes, value, locations, weights, random_padding(shapes) if padded else None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_equal_those_of_grid_sample(backend, dtype):
    locations, weights = (x.to(dtype) for x in random_samples(((9, 11),), points=4, queries=50))
    value = random_value(((9, 11),), channels=16).to(dtype)

    def sample(value, locations, weights):
        image = value.permute(0, 2, 3, 1).reshape(4, 16, 9, 11)
        grid = 2 * locations[:, :, :, 0].transpose(1, 2).flatten(0, 1) - 1
        sampled = F.grid_sample(image, grid, align_corners=False)
        output = (sampled * weights[:, :, :, 0].transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
        return output.view(2, 32, 50).transpose(1, 2)

    def run(value, locations, weights):
        return multi_scale_deformable_attention(value, ((9, 11),), locations, weights, backend=backend)

    output, _, gradients = with_gradients(run, value, locations, weights)
    expected, _, others = with_gradients(sample, *(x.double() for x in (value, locations, weights)))
    for result, other in zip((output, *gradients), (expected, *others), strict=True):
        assert relative_error(result, other) < tolerance(result)


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((0.5, 0.5), 1.0),  # centre of the first cell
        ((2.5, 1.5), 6.0),  # centre of the last
        ((1.0, 0.5), 1.5),  # edge between the first two cells
        ((1.0, 1.0), 3.0),  # corner of four cells: (1 + 2 + 4 + 5) / 4
        ((0.0, 0.5), 0.5),  # border of the map: half of the sample is outside
        ((0.0, 0.0), 0.25),
        ((3.0, 2.0), 1.5),
        ((-0.5, 0.5), 0.0),  # a whole pixel outside
        ((3.5, 1.5), 0.0),
        ((-40.0, 90.0), 0.0),
        ((1e30, 0.5), 0.0),
    ],
)
def test_reads_by_hand_at_centres_edges_borders_and_outside(backend, point, expected):
    assert read_points([point], backend=backend).item() == pytest.approx(expected, abs=1e-12)


def test_gradients_at_cell_centres_and_borders_are_those_of_the_cell_to_the_right_and_below(backend):
    # On the map 1 2 3 / 4 5 6: centres of the first and of the last cell, and the left border.
    for point, expected in [((0.5, 0.5), (1, 3)), ((2.5, 1.5), (-6, -6)), ((0.0, 0.5), (1, 1.5))]:
        value = torch.arange(1.0, 7, dtype=torch.float64).view(1, 6, 1, 1)
        location = (torch.tensor(point, dtype=torch.float64) / torch.tensor([3, 2])).view(1, 1, 1, 1, 1, 2)
        weight = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        location.requires_grad_()
        multi_scale_deformable_attention(value, ((2, 3),), location, weight, backend=backend).backward()
        assert (location.grad.flatten() / torch.tensor([3, 2])).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "place", [(float("nan"), 0.5), (0.5, float("inf")), (-float("inf"), float("nan")), (5.0, -7.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sample_that_is_outside_or_not_finite_reads_zero_and_has_gradient_zero(backend, place, dtype):
    value = random_value(SHAPES).to(dtype)
    locations, weights = (x.to(dtype) for x in random_samples(SHAPES, low=0.2, high=0.8))
    lost = torch.zeros_like(weights, dtype=torch.bool)
    lost[0, 1, 0, 1, 1] = lost[1, 2, 1, 0, 0] = True
    locations[lost] = torch.tensor(place, dtype=dtype)

    def run(value, locations, weights):
        return multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)

    output, _, gradients = with_gradients(run, value, locations, weights)
    without, _, others = with_gradients(run, value, locations.masked_fill(lost[..., None], 0.5), weights * ~lost)
    assert_close(output, without)
    assert_close(gradients[0], others[0])
    for gradient, other in zip(gradients[1:], others[1:], strict=True):
        assert not gradient[lost].any()
        assert_close(gradient[~lost], other[~lost])


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_equal_finite_differences(backend, padded):
    shapes = ((3, 4), (2, 2))
    # Kept off the pixel edges, where the derivative jumps.
    locations, weights = random_samples(shapes, queries=2, seed=4)
    padding = random_padding(shapes) if padded else None
    arguments = tuple(x.requires_grad_() for x in (random_value(shapes), locations, weights))

    def run(value, locations, weights):
        return multi_scale_deformable_attention(
            value, shapes, locations, weights, padding_mask=padding, backend=backend
        )

    assert torch.autograd.gradcheck(run, arguments, nondet_tol=1e-12)


@pytest.mark.skipif(not has_second_derivatives(), reason="grid_sample cannot be differentiated twice here")
def test_the_reference_has_second_derivatives():
    shapes = ((3, 4), (2, 2))
    locations, weights = random_samples(shapes, batch=1, queries=1, seed=4)
    arguments = tuple(x.requires_grad_() for x in (random_value(shapes, batch=1), locations, weights))
    assert torch.autograd.gradgradcheck(
        lambda *x: multi_scale_deformable_attention(x[0], shapes, *x[1:], backend="reference"), arguments
    )


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_each_gradient_is_the_same_whichever_others_are_needed(backend, needed):
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    tensors = [value, locations, weights]
    expected = with_gradients(
        lambda *x: multi_scale_deformable_attention(x[0], SHAPES, *x[1:], backend=backend), *tensors
    )[2]

    def run(*wanted):
        given = list(tensors)
        for i, x in zip(needed, wanted, strict=True):
            given[i] = x
        return multi_scale_deformable_attention(given[0], SHAPES, *given[1:], backend=backend)

    gradients = with_gradients(run, *(tensors[i] for i in needed))[2]
    assert_close(gradients, tuple(expected[i] for i in needed))


def test_non_contiguous_arguments_give_the_same(backend):
    value, (locations, weights) = random_value(SHAPES), random_samples(SHAPES)
    padding = random_padding(SHAPES)
    strided = value.transpose(1, 2).contiguous().transpose(1, 2)
    other = locations.flip(-1).contiguous().flip(-1).transpose(0, 1).contiguous().transpose(0, 1)
    every_second = weights.repeat_interleave(2, 0)[::2]
    spread = padding.repeat_interleave(2, 1)[:, ::2]
    assert not any(x.is_contiguous() for x in (strided, other, every_second, spread))

    def run(value, locations, weights, mask):
        leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
        output = multi_scale_deformable_attention(leaves[0], SHAPES, *leaves[1:], padding_mask=mask, backend=backend)
        (output[..., ::2] * 3).sum().backward()  # whose gradient is strided too
        return output, *(x.grad for x in leaves)

    assert_close(run(strided, other, every_second, spread), run(value, locations, weights, padding))


def test_an_expanded_gradient_of_the_output_is_read_right(backend):
    value, (locations, weights) = random_value(SHAPES).requires_grad_(), random_samples(SHAPES)
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    (summed,) = torch.autograd.grad(output.sum(), value, retain_graph=True)
    (explicit,) = torch.autograd.grad(output, value, torch.ones_like(output))
    assert_close(summed, explicit)


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}])
def test_empty_arguments_give_an_empty_output(backend, sizes):
    locations, weights = random_samples(SHAPES, **sizes)
    value = random_value(SHAPES, batch=sizes.get("batch", 2)).requires_grad_()
    locations.requires_grad_()
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    assert output.shape == (sizes.get("batch", 2), sizes.get("queries", 3), 6)
    output.sum().backward()
    assert value.grad.shape == value.shape
    assert not value.grad.any()
    assert locations.grad.shape == locations.shape


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_cells_that_are_not_read_may_hold_any_values(backend, dtype):
    """NaN in padding, and in cells that no sample touches, changes no output and no gradient."""
    shapes = ((4, 4),)
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    locations, weights = (x.to(geometry) for x in random_samples(shapes, low=0.2, high=0.45, points=3))
    value = random_value(shapes).to(dtype)  # rows and columns 0 to 2 are touched
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[:, 5] = True
    unread = torch.zeros(4, 4, dtype=torch.bool)
    unread[3], unread[:, 3] = True, True
    broken = value.masked_fill((padding | unread.flatten())[..., None, None], float("nan"))

    def run(value, locations, weights):
        return multi_scale_deformable_attention(
            value, shapes, locations, weights, padding_mask=padding, backend=backend
        )

    output, _, gradients = with_gradients(run, broken, locations, weights)
    expected, _, others = with_gradients(run, value, locations, weights)
    assert_close(output, expected)
    assert_close(gradients, others)
    assert not gradients[0][padding | unread.flatten()].any()


def test_half_precision_locations_and_weights_are_widened_and_get_gradients_of_their_own_dtype(backend):
    value = random_value(SHAPES).to(torch.bfloat16)
    locations, weights = (x.to(torch.bfloat16) for x in random_samples(SHAPES))

    def run(value, locations, weights):
        return multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)

    output, _, gradients = with_gradients(run, value, locations, weights)
    assert {x.dtype for x in (output, *gradients)} == {torch.bfloat16}
    assert torch.equal(output, run(value, locations.float(), weights.float()))


def test_a_half_precision_gradient_of_the_value_is_rounded_once(backend):
    """Thousands of queries read one cell; sums in half precision would stop growing at 256 or 2048."""
    for dtype in (torch.bfloat16, torch.float16):
        value = torch.ones(1, 1, 1, 8, dtype=dtype, requires_grad=True)
        locations, weights = torch.full((1, 5000, 1, 1, 1, 2), 0.5), torch.ones(1, 5000, 1, 1, 1)
        output = multi_scale_deformable_attention(value, ((1, 1),), locations, weights, backend=backend)
        output.backward(torch.ones_like(output))
        assert value.grad.tolist() == torch.full((1, 1, 1, 8), 5000.0).to(dtype).tolist()
