"""Float32 on maps as large as those of an image, where a location has fewer bits within its cell than on a small map.

The tests of small maps use `TOLERANCES`. From 128 pixels on, half of the last bit of a coordinate is 7.6e-6 pixels.
"""

import pytest

from sparse_detr.ops import fused_deformable_attention, multi_scale_deformable_attention
from tests.ops.reference import (
    attend,
    attend_gradients,
    fuse,
    fuse_gradients,
    random_predictions,
    random_samples,
    random_value,
    relative_error,
    with_gradients,
)

SHAPES = ((100, 152), (50, 76))
TOLERANCE = 3e-5


def check(run, inputs, locations, weights, through):
    """Check output and gradients of `run` against loops; `through` maps gradients of samples to those of the inputs."""
    output, grad_output, gradients = with_gradients(run, *inputs)
    value = inputs[0].double()
    assert relative_error(output, attend(value, SHAPES, locations, weights)) < TOLERANCE
    grad_value, *by_samples = attend_gradients(value, SHAPES, locations, weights, grad_output.double())
    for gradient, expected in zip(gradients, [grad_value, *through(*by_samples)], strict=True):
        assert relative_error(gradient, expected) < TOLERANCE


# With few channels a vector is not full; many channels are read in place by the CPU kernel.
@pytest.mark.parametrize("channels", [3, 32])
def test_the_plain_form_on_a_large_map_equals_plain_loops(backend, channels):
    inputs = [x.float() for x in (random_value(SHAPES, channels=channels), *random_samples(SHAPES, points=4))]

    def run(value, locations, weights):
        return multi_scale_deformable_attention(value, SHAPES, locations, weights, backend=backend)

    check(run, inputs, *(x.double() for x in inputs[1:]), lambda *gradients: gradients)


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("size", [2, 4])
def test_the_fused_form_on_a_large_map_equals_plain_loops(backend, channels, size):
    inputs = [x.float() for x in (random_value(SHAPES, channels=channels), *random_predictions(SHAPES, size))]
    references, offsets, logits = (x.double() for x in inputs[1:])
    locations, weights = fuse(SHAPES, references, offsets, logits)

    def run(value, *predictions):
        return fused_deformable_attention(value, SHAPES, *predictions, backend=backend)

    def through(by_location, by_weight):
        return fuse_gradients(SHAPES, references, offsets, weights, by_location, by_weight)

    check(run, inputs, locations, weights, through)
