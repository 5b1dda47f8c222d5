"""Products of queries and samples: by hand, against plain loops, their gradients, and errors with a remedy."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.ops import multi_scale_deformable_attention, sample_products
from tests.ops.reference import (
    TOLERANCES,
    RandomNumbers,
    corners,
    random_padding,
    random_samples,
    random_value,
    relative_error,
    samples,
    tolerance,
)

SHAPES = ((4, 6), (2, 3))


def inputs(dtype=torch.float64):
    """Make value, locations (some outside) and query, of two images, three queries and two heads of three channels."""
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    value, query = random_value(SHAPES), RandomNumbers(5).normal(2, 3, 6)
    return value.to(dtype), random_samples(SHAPES)[0].to(geometry), query.to(dtype)


def loop(value, locations, query, padding):
    """Compute the products one at a time."""
    products = locations.new_zeros(locations.shape[:-1])
    query = query.unflatten(-1, value.shape[2:])
    for index, start, height, width, x, y in samples(SHAPES, locations):
        image, row_of_query, head = index[:3]
        for row, column, share in corners(x - 0.5, y - 0.5):
            token = start + row * width + column
            if 0 <= row < height and 0 <= column < width and not padding[image, token]:
                products[index] += share * (value[image, token, head] * query[image, row_of_query, head]).sum()
    return products


def test_a_product_by_hand(backend):
    """Two cells with the values (1, 0) and (3, 4), read at their centres, halfway and outside, by the query (1, 10)."""
    value = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64).view(1, 2, 1, 2)
    x = torch.tensor([0.25, 0.75, 0.5, -1.0], dtype=torch.float64)
    locations = torch.stack([x, torch.full_like(x, 0.5)], -1).view(1, 1, 1, 1, 4, 2)
    query = torch.tensor([1.0, 10.0], dtype=torch.float64).view(1, 1, 2)
    products = sample_products(value, ((1, 2),), locations, query, backend=backend)
    assert products.flatten().tolist() == [1, 43, 22, 0]


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_products_equal_plain_loops_with_padding(backend, dtype):
    value, locations, query = inputs(dtype)
    padding = random_padding(SHAPES)
    products = sample_products(value, SHAPES, locations, query, padding_mask=padding, backend=backend)
    assert products.dtype == locations.dtype
    expected = loop(*(x.double().cpu() for x in (value, locations, query)), padding.cpu())
    assert relative_error(products, expected) < tolerance(products)


@pytest.mark.parametrize(
    "needed", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_gradients_equal_finite_differences(backend, needed):
    leaves = [x.requires_grad_(need) for x, need in zip(inputs(), needed, strict=True)]
    padding = random_padding(SHAPES)

    def run(value, locations, query):
        return sample_products(value, SHAPES, locations, query, padding_mask=padding, backend=backend)

    assert torch.autograd.gradcheck(run, leaves, nondet_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients_have_the_dtypes_of_their_tensors(backend, dtype):
    leaves = [x.requires_grad_() for x in inputs(dtype)]
    sample_products(leaves[0], SHAPES, *leaves[1:], backend=backend).square().sum().backward()
    assert [x.grad.dtype for x in leaves] == [dtype, torch.float32, dtype]
    double = [x.detach().double().requires_grad_() for x in leaves]
    sample_products(double[0], SHAPES, *double[1:], backend=backend).square().sum().backward()
    for half, full in zip(leaves, double, strict=True):
        assert relative_error(half.grad, full.grad) < 4 * TOLERANCES[dtype]


def test_the_product_is_the_derivative_of_attention_by_the_weight(backend):
    value, locations, query = inputs()
    weights = random_samples(SHAPES)[1].requires_grad_()
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)
    (expected,) = torch.autograd.grad((output * query).sum(), weights)
    assert_close(sample_products(value, SHAPES, locations, query, backend=backend), expected, atol=1e-12, rtol=0)


def test_autocast_casts_value_and_query_but_no_location(backend):
    value, locations, query = inputs(torch.float32)
    with torch.autocast(torch.get_default_device().type, dtype=torch.bfloat16):
        products = sample_products(value, SHAPES, locations, query, backend=backend)
    rounded = sample_products(value.bfloat16(), SHAPES, locations, query.bfloat16(), backend=backend)
    assert products.dtype == torch.float32
    assert torch.equal(products, rounded)


def test_no_sample_is_stored(kernel):
    """For the backward pass: value, locations and query, whatever the number of channels."""
    kept = []
    leaves = [x.requires_grad_() for x in inputs()]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        sample_products(leaves[0], SHAPES, *leaves[1:], backend=kernel)
    assert sorted(kept) == sorted(x.shape for x in leaves)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (torch.zeros(2, 3, 5), r"query must be \(2, 3, 6\), .* got \(2, 3, 5\) of torch.float32"),
        (torch.zeros(2, 3, 6, dtype=torch.int64), "got .* of torch.int64"),
    ],
)
def test_a_query_that_does_not_fit_is_named(query, message):
    value, locations, _ = inputs()
    with pytest.raises(ValueError, match=message):
        sample_products(value, SHAPES, locations, query)
