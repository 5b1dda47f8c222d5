"""The error of a kernel is at most twice that of PyTorch's operations in the same dtype, of a gradient three times.

Both are compared with plain loops in float64, at inputs that are exact in the dtype. PyTorch's operations are those of
the backend `reference`. A kernel may differ from them by one rounding of the largest number where they happen to be
exact, so that counts as the least error.
"""

import pytest
import torch

from sparse_detr.ops import fused_deformable_attention, multi_scale_deformable_attention
from tests.ops.reference import (
    attend,
    attend_gradients,
    fuse,
    fuse_gradients,
    random_predictions,
    random_samples,
    random_value,
    with_gradients,
)

SHAPES = ((9, 13), (5, 7), (2, 3))
OUTPUT_FACTOR, GRADIENT_FACTOR = 2, 3


def largest_error(result, truth):
    return float((result.double() - truth).abs().max())


def least_error(result, truth):
    """Half of the last bit of the largest number."""
    return float(truth.abs().max()) * torch.finfo(result.dtype).eps / 2


def errors(run, inputs, truth_of):
    """Return, for the output and every gradient, the largest error and the least that counts."""
    output, grad_output, gradients = with_gradients(run, *inputs)
    truths = truth_of(grad_output.double())
    pairs = list(zip([output, *gradients], truths, strict=True))
    return [(largest_error(*pair), least_error(*pair)) for pair in pairs]


def check(call, kernel, inputs, truth_of):
    theirs = errors(lambda *tensors: call("reference", *tensors), inputs, truth_of)
    ours = errors(lambda *tensors: call(kernel, *tensors), inputs, truth_of)
    for place, ((error, least), (allowed, _)) in enumerate(zip(ours, theirs, strict=True)):
        factor = OUTPUT_FACTOR if place == 0 else GRADIENT_FACTOR
        assert error <= factor * max(allowed, least), f"number {place}: {error} against {allowed}, least {least}"


def skip_if_rounding_is_cut_off(kernel, dtype, value):
    if kernel == "triton" and dtype == torch.bfloat16 and not value.is_cuda:
        pytest.skip("Triton's interpreter cuts bfloat16 off instead of rounding it")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [8, 32])
def test_the_plain_form_errs_little_more_than_pytorch(kernel, dtype, channels):
    value = random_value(SHAPES, channels=channels).to(dtype)
    skip_if_rounding_is_cut_off(kernel, dtype, value)
    geometry = torch.float64 if dtype == torch.float64 else torch.float32
    locations, weights = (x.to(geometry) for x in random_samples(SHAPES, points=4))
    exact = [x.double() for x in (locations, weights)]

    def call(backend, *tensors):
        value, *samples = tensors
        return multi_scale_deformable_attention(value, SHAPES, *samples, backend=backend)

    def truth_of(grad_output):
        inputs = (value.double(), SHAPES, *exact)
        return [attend(*inputs), *attend_gradients(*inputs, grad_output)]

    check(call, kernel, [value, locations, weights], truth_of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [2, 4])
def test_the_fused_form_errs_little_more_than_pytorch(kernel, dtype, size):
    value = random_value(SHAPES, channels=16).to(dtype)
    skip_if_rounding_is_cut_off(kernel, dtype, value)
    references, offsets, logits = (x.float() for x in random_predictions(SHAPES, size))
    exact = [x.double() for x in (references, offsets, logits)]
    locations, weights = fuse(SHAPES, *exact)

    def call(backend, value, *predictions):
        return fused_deformable_attention(value, SHAPES, *predictions, backend=backend)

    def truth_of(grad_output):
        inputs = (value.double(), SHAPES, locations, weights)
        grad_value, by_location, by_weight = attend_gradients(*inputs, grad_output)
        by_predictions = fuse_gradients(SHAPES, exact[0], exact[1], weights, by_location, by_weight)
        return [attend(*inputs), grad_value, *by_predictions]

    check(call, kernel, [value, references, offsets, logits], truth_of)
