"""The attention map against plain loops and against samples by hand."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.ops import multi_scale_deformable_attention, splat_attention
from tests.ops.reference import random_samples, relative_error, splat, tolerance

SHAPES = ((4, 6), (2, 3))


def splat_one(x, y, **options):
    """Return the (4, 6) map of one sample of weight 1 at (x, y), in pixels from the top left edge."""
    location = torch.tensor([x / 6, y / 4], dtype=torch.float64).view(1, 1, 1, 1, 1, 2)
    weight = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    return splat_attention(((4, 6),), location, weight, **options).view(4, 6)


def test_a_sample_on_a_cell_centre_adds_to_that_cell_only(backend):
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1, 2] = 1
    assert_close(splat_one(2.5, 1.5, backend=backend), expected, atol=1e-12, rtol=0)


def test_without_the_half_pixel_the_same_sample_is_spread_over_four_cells(backend):
    expected = torch.zeros(4, 6, dtype=torch.float64)
    expected[1:3, 2:4] = 0.25
    assert_close(splat_one(2.5, 1.5, pixel_offset=0.0, backend=backend), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("x", "y", "mass"),
    [
        (0.0, 2.0, 0.5),
        (0.0, 0.0, 0.25),
        (6.0, 4.0, 0.25),
        (-0.5, 2, 0),
        (90, 2, 0),
        (float("nan"), 2, 0),
        (2, -float("inf"), 0),
    ],
)
def test_weight_outside_of_the_level_is_dropped(backend, x, y, mass):
    assert splat_one(x, y, backend=backend).sum().item() == pytest.approx(mass, abs=1e-12)


@pytest.mark.parametrize("pixel_offset", [-0.5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("queries", [3, 40])
def test_equals_plain_loops(backend, pixel_offset, dtype, queries):
    locations, weights = (x.to(dtype) for x in random_samples(SHAPES, queries=queries))
    result = splat_attention(SHAPES, locations, weights, pixel_offset=pixel_offset, backend=backend)
    assert result.dtype == dtype
    expected = splat(SHAPES, locations.double().cpu(), weights.double().cpu(), pixel_offset)
    assert relative_error(result, expected) < tolerance(result)


def test_half_precision_is_widened(backend):
    locations, weights = (x.half() for x in random_samples(SHAPES))
    result = splat_attention(SHAPES, locations, weights, backend=backend)
    assert torch.equal(result, splat_attention(SHAPES, locations.float(), weights.float(), backend=backend))


def test_the_sum_of_the_map_is_the_attention_if_all_samples_are_inside(backend):
    # At least half a pixel from every border of the coarsest level, 2 x 3.
    locations, weights = random_samples(SHAPES, low=0.25, high=0.75)
    received = splat_attention(SHAPES, locations, weights, backend=backend)
    assert_close(received.sum(1), weights.sum((1, 2, 3, 4)))


def test_the_map_is_the_gradient_of_reading_a_map_of_ones(backend):
    locations, weights = random_samples(SHAPES)
    value = torch.ones(2, 30, 2, 1, dtype=torch.float64, requires_grad=True)
    multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend).sum().backward()
    assert_close(splat_attention(SHAPES, locations, weights, backend=backend), value.grad.sum((2, 3)))


def test_non_contiguous_arguments_give_the_same(backend):
    locations, weights = random_samples(SHAPES)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (locations, weights)]
    result = splat_attention(SHAPES, *strided, backend=backend)
    assert_close(result, splat_attention(SHAPES, locations, weights, backend=backend))


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}])
def test_no_samples_give_an_empty_map(backend, sizes):
    locations, weights = random_samples(SHAPES, **sizes)
    received = splat_attention(SHAPES, locations, weights, backend=backend)
    assert received.shape == (sizes.get("batch", 2), 30)
    assert not received.any()


def test_the_reference_runs_where_a_derivative_is_needed(monkeypatch):
    monkeypatch.delenv("SPARSE_DETR_BACKEND", raising=False)
    locations, weights = random_samples(SHAPES)
    weights.requires_grad_()
    (gradient,) = torch.autograd.grad(splat_attention(SHAPES, locations, weights).square().sum(), weights)
    assert gradient.any()


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_named_kernel_refuses_to_be_differentiated(kernel, by, monkeypatch):
    if by == "environment":
        monkeypatch.setenv("SPARSE_DETR_BACKEND", kernel)
    locations, weights = random_samples(SHAPES)
    options = {"backend": kernel} if by == "argument" else {}
    received = splat_attention(SHAPES, locations, weights.requires_grad_(), **options)
    with pytest.raises(RuntimeError, match="splat_attention has no derivative; .* backend='reference'"):
        received.sum().backward()
