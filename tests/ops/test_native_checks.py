"""Who calls the native operators without the public functions gets an error, not another's memory."""

import pytest
import torch

from tests.ops.backends import CPU_BACKENDS

pytestmark = pytest.mark.skipif("cpu" not in CPU_BACKENDS, reason="no CPU library is built here: python ops/build.py")


def arguments():
    """Of an image with 6 + 2 tokens, two heads of four channels, three queries, two levels and one point."""
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
    ],
)
def test_a_wrong_argument_is_refused_by_name(name, wrong):
    with pytest.raises(RuntimeError, match=name):
        torch.ops.sparse_detr.deformable_attention(**{**arguments(), name: wrong})


@pytest.mark.parametrize("wrong", [torch.randn(1, 3, 7), torch.randn(1, 3, 8).bfloat16()])
def test_a_wrong_gradient_is_refused_by_name(wrong):
    with pytest.raises(RuntimeError, match="grad_output"):
        torch.ops.sparse_detr.deformable_attention_backward(wrong, *arguments().values(), True, True, True, False)


def test_the_map_refuses_half_precision_locations():
    locations, weights = torch.rand(1, 3, 2, 2, 1, 2).bfloat16(), torch.rand(1, 3, 2, 2, 1)
    with pytest.raises(RuntimeError, match="points must be float32 or float64"):
        torch.ops.sparse_detr.splat_attention(locations, weights, [2, 3, 1, 2], -0.5)
