"""Wrong arguments are refused by name, with the same message for every backend."""

import pytest
import torch

from sparse_detr.ops import fused_deformable_attention, multi_scale_deformable_attention, splat_attention
from tests.ops.reference import random_padding, random_predictions, random_samples, random_value

SHAPES = ((4, 6), (2, 3), (1, 1))


def plain(backend=None, **changed):
    """Call the plain form with some arguments changed."""
    locations, weights = random_samples(SHAPES)
    given = {"value": random_value(SHAPES), "sampling_locations": locations, "attention_weights": weights}
    return multi_scale_deformable_attention(**{"spatial_shapes": SHAPES, **given, **changed}, backend=backend)


def fused(backend=None, **changed):
    """Call the fused form with some arguments changed."""
    given = dict(zip(("reference_points", "sampling_offsets", "attention_logits"), random_predictions(SHAPES, 2)))
    given |= {"value": random_value(SHAPES), "spatial_shapes": SHAPES}
    return fused_deformable_attention(**{**given, **changed}, backend=backend)


def splat(backend=None, **changed):
    """Call the splat with some arguments changed."""
    locations, weights = random_samples(SHAPES)
    given = {"spatial_shapes": SHAPES, "sampling_locations": locations, "attention_weights": weights}
    return splat_attention(**{**given, **changed}, backend=backend)


LOCATIONS, WEIGHTS = random_samples(SHAPES)
REFERENCES, OFFSETS, LOGITS = random_predictions(SHAPES, 2)
VALUE = random_value(SHAPES)
REFUSED = [
    (plain, {"value": VALUE[:, 1:]}, r"value has 30 tokens.*add up to 31"),
    (plain, {"value": VALUE.flatten(2)}, r"value must be \(B, N, M, D\)"),
    (plain, {"value": random_value(SHAPES, batch=4)}, r"value must be \(B, N, M, D\) with the 2 images and 2 heads"),
    (plain, {"value": random_value(SHAPES, heads=4)}, r"value must be \(B, N, M, D\) with the 2 images and 2 heads"),
    (plain, {"value": VALUE.int()}, "value must be float32, float64, bfloat16 or float16, got torch.int32"),
    (plain, {"value": VALUE.to("meta")}, "sampling_locations is on cpu, but value is on meta"),
    (plain, {"value": VALUE.float()}, "sampling_locations must be torch.float32 .* got torch.float64"),
    (plain, {"sampling_locations": LOCATIONS[..., :1]}, r"sampling_locations must be \(B, Q, M, L, P, 2\)"),
    (plain, {"sampling_locations": LOCATIONS.float()}, "sampling_locations must be torch.float64 .* torch.float32"),
    (plain, {"sampling_locations": LOCATIONS[:, :, :, :, :0]}, "sampling_locations must have at least one level"),
    (plain, {"sampling_locations": LOCATIONS[:, :, :, :0], "spatial_shapes": ()}, "must have at least one level"),
    (plain, {"attention_weights": WEIGHTS[:, :2]}, "attention_weights must have the shape"),
    (plain, {"attention_weights": WEIGHTS.long()}, "attention_weights must be torch.float64 .* got torch.int64"),
    (plain, {"attention_weights": WEIGHTS.to("meta")}, "attention_weights is on meta, but value is on cpu"),
    (plain, {"spatial_shapes": SHAPES[:2]}, "sampling_locations has 3 levels, spatial_shapes has 2"),
    (plain, {"spatial_shapes": ((4, 6), (2, 3), (0, 1))}, r"spatial_shapes must be pairs \(h, w\) of at least 1"),
    (plain, {"spatial_shapes": ((4, 6), (2, 3), (1,))}, r"spatial_shapes must be pairs \(h, w\)"),
    *[
        (function, {"spatial_shapes": ((height, width), *SHAPES[1:])}, "fewer than 268435456 tokens, got")
        for function in (plain, fused, splat)
        for height, width in ((2**32, 2**32), (2**63 - 1, 2), (2**200, 1), (2**14, 2**14))
    ],
    (splat, {"spatial_shapes": ((2**27, 1), (2**27, 1), (1, 1))}, "fewer than 268435456 tokens, got 268435457"),
    *[
        (splat, {"spatial_shapes": (pair, *SHAPES[1:])}, r"spatial_shapes must be pairs \(h, w\)")
        for pair in ((4.0, 6), (4, True), (None, 6), ("4", 6), (4, -6), (-(2**32), -(2**32)), 24, (), (4, 6, 1))
    ],
    (splat, {"spatial_shapes": ()}, "sampling_locations has 3 levels, spatial_shapes has 0"),
    (plain, {"spatial_shapes": torch.tensor(SHAPES)}, "spatial_shapes must be pairs .* got a tensor"),
    (plain, {"padding_mask": random_padding(SHAPES).float()}, r"padding_mask must be bool of the shape \(2, 31\)"),
    (plain, {"padding_mask": random_padding(SHAPES)[:, 1:]}, r"padding_mask must be bool of the shape \(2, 31\)"),
    (plain, {"padding_mask": random_padding(SHAPES).to("meta")}, "padding_mask is on meta, but value is on cpu"),
    (fused, {"value": VALUE[:, 1:]}, r"value has 30 tokens.*add up to 31"),
    (fused, {"reference_points": REFERENCES[:, :, :2]}, r"reference_points must be \(2, 3, 3, 2 or 4\)"),
    (fused, {"reference_points": REFERENCES[..., :1]}, r"reference_points must be \(2, 3, 3, 2 or 4\)"),
    (fused, {"reference_points": REFERENCES.float()}, "reference_points must be torch.float64 .* torch.float32"),
    (fused, {"reference_points": REFERENCES.to("meta")}, "reference_points is on meta, but value is on cpu"),
    (fused, {"sampling_offsets": OFFSETS.flatten(3)}, r"sampling_offsets must be \(B, Q, M, L, P, 2\)"),
    (fused, {"sampling_offsets": OFFSETS[:, :, :, :, :0]}, "sampling_offsets must have at least one level"),
    (fused, {"sampling_offsets": OFFSETS.float()}, "sampling_offsets must be torch.float64 .* torch.float32"),
    (fused, {"attention_logits": LOGITS.flatten(3)}, "attention_logits must have the shape"),
    (fused, {"spatial_shapes": SHAPES[:2]}, "sampling_offsets has 3 levels, spatial_shapes has 2"),
    (splat, {"attention_weights": WEIGHTS[..., :1]}, "attention_weights must have the shape"),
    (splat, {"attention_weights": WEIGHTS.float()}, "attention_weights must be torch.float64 .* torch.float32"),
    (splat, {"sampling_locations": LOCATIONS.flatten(3)}, r"sampling_locations must be \(B, Q, M, L, P, 2\)"),
    (splat, {"sampling_locations": LOCATIONS[:, :, :, :, :0]}, "sampling_locations must have at least one level"),
    (splat, {"spatial_shapes": SHAPES[:1]}, "sampling_locations has 3 levels, spatial_shapes has 1"),
]


@pytest.mark.parametrize(("function", "changed", "message"), REFUSED)
def test_a_wrong_argument_is_refused_by_name(cpu_backend, function, changed, message):
    with pytest.raises(ValueError, match=message):
        function(cpu_backend, **changed)


@pytest.mark.parametrize("function", [plain, fused, splat])
def test_the_unchanged_arguments_are_accepted(backend, function):
    assert function(backend).isfinite().all()
