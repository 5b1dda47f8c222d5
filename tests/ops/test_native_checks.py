"""A direct call of the native operators with wrong arguments is an error, and reads no foreign memory."""

import pytest
import torch

from tests.ops.backends import CPU_BACKENDS

pytestmark = pytest.mark.skipif("cpu" not in CPU_BACKENDS, reason="no CPU library is built here: python ops/build.py")


def arguments():
    """Return arguments: one image with 6 + 2 tokens, two heads of four channels, three queries, one point."""
    return {
        "value": torch.randn(1, 8, 2, 4),
        "points": torch.rand(1, 3, 2, 2, 1, 2),
        "weights": torch.rand(1, 3, 2, 2, 1),
        "reference_points": torch.rand(1, 3, 2, 2),
        "padding_mask": torch.zeros(1, 8, dtype=torch.bool),
        "spatial_shapes": [2, 3, 1, 2],
    }


def test_right_arguments_pass():
    assert torch.ops.sparse_detr.deformable_attention(**arguments()).shape == (1, 3, 8)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("value", torch.randn(2, 8, 2, 4)),  # images
        ("value", torch.randn(1, 8, 3, 4)),  # heads
        ("value", torch.zeros(1, 8, 2, 4, dtype=torch.int64)),
        ("points", torch.rand(1, 3, 2, 2, 1, 3)),
        ("points", torch.rand(1, 3, 2, 2, 0, 2)),
        ("points", torch.rand(1, 3, 2, 2, 1, 2, dtype=torch.float64)),
        ("weights", torch.rand(1, 3, 2, 1, 1)),
        ("weights", torch.rand(1, 3, 2, 2, 1).bfloat16()),
        ("reference_points", torch.rand(1, 3, 2, 3)),
        ("reference_points", torch.rand(1, 2, 2, 2)),
        ("padding_mask", torch.zeros(1, 7, dtype=torch.bool)),
        ("padding_mask", torch.zeros(1, 8)),
        ("spatial_shapes", [2, 3]),
        ("spatial_shapes", [2, 3, 1, 3]),
        ("spatial_shapes", [-2, -3, 1, 2]),
        ("spatial_shapes", [0, 3, 4, 2]),
        ("spatial_shapes", []),
    ],
)
def test_a_wrong_argument_is_refused_by_name(name, wrong):
    with pytest.raises(RuntimeError, match=name):
        torch.ops.sparse_detr.deformable_attention(**{**arguments(), name: wrong})


@pytest.mark.parametrize(
    "sizes",
    [
        [2**32, 2**32, 1, 2],  # their product is 0 in 64 bits
        [2**63 - 1, 2, 1, 2],
        [2**62, 4, 1, 8],
        [2**16, 2**16, 1, 2],
        [2**14, 2**14, 1, 2],  # the smallest number that is too large
        [2**27, 1, 2**27, 1],
        [2**62, 3, 2**62, 1],  # their sum is 0
    ],
)
def test_sizes_whose_tokens_are_too_many_are_refused_before_anything_is_read(sizes):
    given = {**arguments(), "spatial_shapes": sizes}
    with pytest.raises(RuntimeError, match="spatial_shapes must add up to fewer than 268435456 tokens"):
        torch.ops.sparse_detr.deformable_attention(**given)
    grad = torch.randn(1, 3, 8)
    with pytest.raises(RuntimeError, match="spatial_shapes must add up to fewer than 268435456 tokens"):
        torch.ops.sparse_detr.deformable_attention_backward(grad, *given.values(), True, True, True, False)
    with pytest.raises(RuntimeError, match="spatial_shapes must add up to fewer than 268435456 tokens"):
        torch.ops.sparse_detr.splat_attention(given["points"], given["weights"], sizes, -0.5)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((0, 3, 2, 2, 2**40), "samples of a query and head"),
        ((0, 3, 2, 2**40, 1), "samples of a query and head"),
        ((0, 2**31, 2, 2, 1), "queries"),
        ((2**31, 0, 2, 2, 1), "heads of all images"),
        ((2**20, 0, 2**20, 2, 1), "heads of all images"),
    ],
)
def test_empty_tensors_with_huge_sizes_are_refused(size, message):
    points, weights = torch.empty(*size, 2), torch.empty(size)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.sparse_detr.splat_attention(points, weights, [2, 3, 1, 2], -0.5)


def test_a_value_with_huge_channels_is_refused():
    value = torch.empty(0).as_strided((0, 8, 2**20, 2**40), (0, 0, 0, 0))
    points = torch.empty(0, 3, 2**20, 2, 1, 2)
    with pytest.raises(RuntimeError, match="channels of all heads"):
        torch.ops.sparse_detr.deformable_attention(value, points, points[..., 0], None, None, [2, 3, 1, 2])


@pytest.mark.parametrize("wrong", [torch.randn(1, 3, 7), torch.randn(1, 3, 8).bfloat16()])
def test_a_wrong_gradient_is_refused_by_name(wrong):
    with pytest.raises(RuntimeError, match="grad_output"):
        torch.ops.sparse_detr.deformable_attention_backward(wrong, *arguments().values(), True, True, True, False)


def test_the_map_refuses_half_precision_locations():
    locations, weights = torch.rand(1, 3, 2, 2, 1, 2).bfloat16(), torch.rand(1, 3, 2, 2, 1)
    with pytest.raises(RuntimeError, match="points must be float32 or float64"):
        torch.ops.sparse_detr.splat_attention(locations, weights, [2, 3, 1, 2], -0.5)
