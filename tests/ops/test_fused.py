"""The fused form, which takes the output of the linear layers: against plain loops, the plain form and edge cases."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.ops import (
    fused_deformable_attention,
    locate_samples,
    multi_scale_deformable_attention,
    splat_attention,
)
from tests.ops.backends import has_second_derivatives
from tests.ops.reference import (
    TOLERANCES,
    attend,
    attend_gradients,
    fuse,
    fuse_gradients,
    random_padding,
    random_predictions,
    random_value,
    relative_error,
    tolerance,
    with_gradients,
)

SHAPES = ((4, 6), (2, 3), (1, 1))
FIVE_LEVELS = ((5, 7), (4, 3), (2, 2), (1, 3), (1, 1))
SAMPLES = [(1, 1), (1, 3), (3, 4), (4, 4), (5, 4)]


def check_against_loops(backend, shapes, value, references, offsets, logits, padding=None):
    """Check output and gradients, in the dtype of `value`, against loops in float64 on the same numbers."""

    def run(value, *predictions):
        return fused_deformable_attention(value, shapes, *predictions, padding_mask=padding, backend=backend)

    output, grad_output, gradients = with_gradients(run, value, references, offsets, logits)
    value, references, offsets, logits, grad_output = (
        x.double().cpu() for x in (value, references, offsets, logits, grad_output)
    )
    if padding is not None:
        padding = padding.cpu()
        value = value.masked_fill(padding[..., None, None], 0)
    locations, weights = fuse(shapes, references, offsets, logits)
    assert relative_error(output, attend(value, shapes, locations, weights)) < tolerance(output)
    grad_value, *through = attend_gradients(value, shapes, locations, weights, grad_output)
    if padding is not None:
        grad_value[padding] = 0
    expected = [grad_value, *fuse_gradients(shapes, references, offsets, weights, *through)]
    for gradient, other in zip(gradients, expected, strict=True):
        assert relative_error(gradient, other) < tolerance(gradient)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_output_and_gradients_equal_plain_loops(backend, dtype, size, padded):
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    predictions = (x.to(geometry) for x in random_predictions(SHAPES, size, points=3))
    value = random_value(SHAPES, channels=8).to(dtype)
    check_against_loops(backend, SHAPES, value, *predictions, random_padding(SHAPES) if padded else None)


@pytest.mark.parametrize("channels", [1, 3, 5, 20, 32, 33, 64])
def test_any_number_of_channels_equals_plain_loops(backend, channels):
    predictions = (x.float() for x in random_predictions(SHAPES, 4, heads=3))
    check_against_loops(backend, SHAPES, random_value(SHAPES, heads=3, channels=channels).float(), *predictions)


@pytest.mark.parametrize(("levels", "points"), SAMPLES)
@pytest.mark.parametrize("queries", [1, 40])  # few and many queries for the size of the maps
def test_any_number_of_levels_and_points_equals_plain_loops(backend, levels, points, queries):
    shapes = FIVE_LEVELS[:levels]
    predictions = (x.float() for x in random_predictions(shapes, 2, points=points, queries=queries, batch=1))
    check_against_loops(backend, shapes, random_value(shapes, batch=1, channels=4).float(), *predictions)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_queries_that_are_few_for_the_size_of_the_maps_equal_plain_loops(backend, dtype, channels, size, padded):
    # The CPU kernels then read the value in place if its rows are whole vectors; otherwise they read a copy.
    shapes = ((5, 6), (4, 5), (3, 4))
    predictions = (x.to(dtype) for x in random_predictions(shapes, size, queries=5, points=3))
    value = random_value(shapes, channels=channels).to(dtype)
    check_against_loops(backend, shapes, value, *predictions, random_padding(shapes) if padded else None)


@pytest.mark.parametrize("size", [2, 4])
def test_the_fused_form_equals_locating_the_samples_first(backend, size):
    value, padding = random_value(SHAPES), random_padding(SHAPES)
    references, offsets, logits = random_predictions(SHAPES, size)

    def fused(value, references, offsets, logits):
        return fused_deformable_attention(
            value, SHAPES, references, offsets, logits, padding_mask=padding, backend=backend
        )

    def in_steps(value, references, offsets, logits):
        samples = locate_samples(references, offsets, logits, SHAPES)
        return multi_scale_deformable_attention(value, SHAPES, *samples, padding_mask=padding, backend=backend)

    tensors = (value, references, offsets, logits)
    assert_close(with_gradients(fused, *tensors), with_gradients(in_steps, *tensors))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_gradients_equal_finite_differences(backend, size, padded):
    shapes = ((3, 4), (2, 2))
    padding = random_padding(shapes) if padded else None
    predictions = random_predictions(shapes, size, queries=2, seed=5)
    arguments = tuple(x.requires_grad_() for x in (random_value(shapes), *predictions))

    def run(value, *predictions):
        return fused_deformable_attention(value, shapes, *predictions, padding_mask=padding, backend=backend)

    assert torch.autograd.gradcheck(run, arguments, nondet_tol=1e-12)


@pytest.mark.skipif(not has_second_derivatives(), reason="grid_sample cannot be differentiated twice here")
@pytest.mark.parametrize("size", [2, 4])
def test_the_reference_has_second_derivatives(size):
    shapes = ((3, 4),)
    predictions = random_predictions(shapes, size, batch=1, queries=1, heads=1, seed=6)
    arguments = tuple(x.requires_grad_() for x in (random_value(shapes, batch=1, heads=1), *predictions))
    assert torch.autograd.gradgradcheck(
        lambda *x: fused_deformable_attention(x[0], shapes, *x[1:], backend="reference"), arguments
    )


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("what", ["offset", "reference"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_that_is_outside_or_not_finite_reads_zero_and_has_gradient_zero(backend, size, what, number):
    value = random_value(SHAPES).float()
    references, offsets, logits = (x.float() for x in random_predictions(SHAPES, size))
    lost = torch.zeros_like(logits, dtype=torch.bool)
    if what == "offset":
        lost[0, 1, 0, 1, 1] = True
        offsets[0, 1, 0, 1, 1, 0] = number
    else:
        lost[0, 1, :, 1] = True  # every head and point that uses this reference
        references[0, 1, 1, -1] = number

    def run(value, references, offsets, logits):
        return fused_deformable_attention(value, SHAPES, references, offsets, logits, backend=backend)

    def elsewhere(value, references, offsets, logits):
        far = offsets.masked_fill(~offsets.isfinite(), 0).masked_fill(lost[..., None], 1e6)
        near = references.masked_fill(~references.isfinite(), 0.5)
        return fused_deformable_attention(value, SHAPES, near, far, logits, backend=backend)

    output, _, gradients = with_gradients(run, value, references, offsets, logits)
    without, _, others = with_gradients(elsewhere, value, references, offsets, logits)
    assert_close(output, without)
    assert_close(gradients, others)
    assert not gradients[2][lost].any()


def test_large_logits_do_not_overflow(backend):
    value = random_value(SHAPES).float()
    references, offsets, logits = (x.float() for x in random_predictions(SHAPES, 2))
    expected = fused_deformable_attention(value, SHAPES, references, offsets, logits, backend=backend)
    result = fused_deformable_attention(value, SHAPES, references, offsets, logits + 1000, backend=backend)
    assert_close(result, expected, atol=2e-4, rtol=0)  # the added constant has rounded the logits


def test_a_logit_of_minus_infinity_removes_a_sample(backend):
    value = random_value(SHAPES).float()
    references, offsets, logits = (x.float() for x in random_predictions(SHAPES, 2))
    logits[..., 1:] = -float("inf")
    expected = fused_deformable_attention(
        value, SHAPES, references, offsets[..., :1, :], logits[..., :1], backend=backend
    )
    result = fused_deformable_attention(value, SHAPES, references, offsets, logits, backend=backend)
    assert_close(result, expected)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (3,), (0, 3), (1, 2)])
def test_each_gradient_is_the_same_whichever_others_are_needed(backend, needed):
    tensors = [random_value(SHAPES), *random_predictions(SHAPES, 4)]
    expected = with_gradients(lambda *x: fused_deformable_attention(x[0], SHAPES, *x[1:], backend=backend), *tensors)[2]

    def run(*wanted):
        given = list(tensors)
        for i, x in zip(needed, wanted, strict=True):
            given[i] = x
        return fused_deformable_attention(given[0], SHAPES, *given[1:], backend=backend)

    assert_close(with_gradients(run, *(tensors[i] for i in needed))[2], tuple(expected[i] for i in needed))


def test_non_contiguous_arguments_give_the_same(backend):
    value, (references, offsets, logits) = random_value(SHAPES), random_predictions(SHAPES, 4)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in (value, references, offsets, logits)]
    assert not any(x.is_contiguous() for x in strided)

    def run(value, *predictions):
        return fused_deformable_attention(value, SHAPES, *predictions, backend=backend)

    result = torch.autograd.grad(run(*(x.requires_grad_() for x in strided)).sum(), strided)
    plain = [x.detach().contiguous().requires_grad_() for x in strided]
    assert_close(result, torch.autograd.grad(run(*plain).sum(), plain))


def test_half_precision_predictions_are_widened_and_get_gradients_of_their_own_dtype(backend):
    tensors = [x.to(torch.float16) for x in (random_value(SHAPES), *random_predictions(SHAPES, 4))]

    def run(value, *predictions):
        return fused_deformable_attention(value, SHAPES, *predictions, backend=backend)

    output, _, gradients = with_gradients(run, *tensors)
    assert {x.dtype for x in (output, *gradients)} == {torch.float16}
    assert torch.equal(output, run(tensors[0], *(x.float() for x in tensors[1:])))


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"batch": 0}])
def test_empty_arguments_give_an_empty_output(backend, sizes):
    predictions = [x.requires_grad_() for x in random_predictions(SHAPES, 4, **sizes)]
    value = random_value(SHAPES, batch=sizes.get("batch", 2)).requires_grad_()
    output = fused_deformable_attention(value, SHAPES, *predictions, backend=backend)
    assert output.shape == (sizes.get("batch", 2), sizes.get("queries", 3), 6)
    output.sum().backward()
    assert all(x.grad.shape == x.shape and not x.grad.any() for x in (value, *predictions))


def strided(x, layout):
    """Return the numbers of `x` (B, Q, M, L, P, ...) in memory of another layout."""
    if layout == "columns":  # part of the columns of a wider tensor
        wide = torch.cat([x.flatten(2), torch.full_like(x[:, :, 0].flatten(2), torch.nan)], -1)
        return wide[..., : x[0, 0].numel()].unflatten(-1, x.shape[2:])
    if layout == "every_second_query":
        return x.repeat_interleave(2, 1)[:, ::2]
    if layout == "heads_first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    assert layout == "images_last"
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


@pytest.mark.parametrize("queries", [1, 7])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", ["columns", "every_second_query", "heads_first", "images_last"])
def test_the_layout_of_the_predictions_in_memory_changes_no_bit(backend, layout, batch, queries):
    predictions = [x.float() for x in random_predictions(SHAPES, 2, queries=queries, batch=batch)]
    value = random_value(SHAPES, batch=batch).float()

    def run(*predictions):
        return fused_deformable_attention(value, SHAPES, *predictions, backend=backend)

    def run_strided(references, offsets, logits):
        return run(references, strided(offsets, layout), strided(logits, layout))

    expected, _, gradients = with_gradients(run, *predictions)
    output, _, other_gradients = with_gradients(run_strided, *predictions)
    assert torch.equal(output, expected)
    for gradient, other in zip(gradients, other_gradients, strict=True):
        assert torch.equal(gradient, other)


@pytest.mark.parametrize("layout", ["columns", "every_second_query", "heads_first", "images_last"])
def test_the_layout_of_samples_in_memory_changes_no_bit(backend, layout):
    references, offsets, logits = (x.float() for x in random_predictions(SHAPES, 2))
    samples = locate_samples(references, offsets, logits, SHAPES)
    value = random_value(SHAPES).float()
    plain, other = samples, [strided(x, layout) for x in samples]
    results = [multi_scale_deformable_attention(value, SHAPES, *x, backend=backend) for x in (plain, other)]
    maps = [splat_attention(SHAPES, *x, backend=backend) for x in (plain, other)]
    assert torch.equal(*results)
    assert torch.equal(*maps)
