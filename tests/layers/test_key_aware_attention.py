"""Key-aware deformable attention against plain loops, and its treatment of samples outside of the image."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import KeyAwareDeformableAttention, MultiScaleDeformableAttention
from sparse_detr.structures import Pyramid
from tests.ops.reference import attend, corners, samples

SHAPES = ((3, 4), (2, 2))
FULL, PART = SHAPES, ((2, 3), (1, 2))
OUTSIDE = ("excluded", "zero")


def make_layer(outside="excluded"):
    """Make a layer of four heads of two channels, with random weights."""
    torch.manual_seed(0)
    layer = KeyAwareDeformableAttention(embed_dim=8, num_heads=4, num_levels=2, num_points=2, outside=outside).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def pyramid_of(*valid_shapes):
    return Pyramid.of(SHAPES, valid_shapes, device=torch.device("cpu"))


def inputs(reference_size=2):
    """Make query, reference points and source for two images and three queries."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, 3, 2, reference_size, generator=generator, dtype=torch.float64)
    return query, reference, torch.randn(2, 16, 8, generator=generator, dtype=torch.float64)


def plain_locations(layer, query, reference):
    """Compute the sampling locations with the plain layer."""
    plain = MultiScaleDeformableAttention(embed_dim=8, num_heads=4, num_levels=2, num_points=2).double()
    plain.sampling_offsets.load_state_dict(layer.sampling_offsets.state_dict())
    return plain.sample(query, reference, pyramid_of(FULL, FULL)).locations


def loop_weights(layer, query, locations, value, pyramid):
    """Compute the weights one sample at a time."""
    logits = locations.new_zeros(locations.shape[:-1])
    touched = torch.zeros(logits.shape, dtype=torch.bool)
    projected = layer.query_proj(query).unflatten(-1, (4, 2))
    for index, start, height, width, x, y in samples(SHAPES, locations):
        image, row_of_query, head = index[:3]
        for row, column, share in corners(x - 0.5, y - 0.5):
            token = start + row * width + column
            if 0 <= row < height and 0 <= column < width and not pyramid.padding_mask[image, token]:
                touched[index] = True
                product = (value[image, token, head] * projected[image, row_of_query, head]).sum()
                logits[index] += share * product / 2**0.5
    if layer.outside == "excluded":
        logits = logits.masked_fill(~touched, float("-inf"))
    return logits.flatten(3).softmax(-1).nan_to_num().view_as(logits)


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("reference_size", [2, 4])
def test_equals_plain_loops_for_reference_points_and_boxes(outside, reference_size):
    layer, (query, reference, source) = make_layer(outside), inputs(reference_size)
    pyramid = pyramid_of(FULL, PART)
    value = layer.value_proj(source).masked_fill(pyramid.padding_mask[..., None], 0).view(2, 16, 4, 2)
    locations = plain_locations(layer, query, reference)
    weights = loop_weights(layer, query, locations, value, pyramid)
    output, samples_ = layer.attend_with_samples(query, reference, source, pyramid)
    assert_close(samples_.locations, locations, atol=1e-12, rtol=0)
    assert_close(samples_.weights, weights, atol=1e-12, rtol=0)
    assert_close(output, layer.output_proj(attend(value, SHAPES, locations, weights)), atol=1e-12, rtol=0)
    assert torch.equal(layer(query, reference, source, pyramid), output)


def test_the_kinds_differ_where_samples_lie_outside_only():
    query, reference, source = inputs()
    kinds = [make_layer(outside) for outside in OUTSIDE]
    for layer in kinds:
        torch.nn.init.zeros_(layer.sampling_offsets.weight)
        torch.nn.init.constant_(layer.sampling_offsets.bias, 0.1)
    inside = [layer(query, reference * 0.5 + 0.25, source, pyramid_of(FULL, FULL)) for layer in kinds]
    partly = [layer(query, reference + 0.3, source, pyramid_of(FULL, PART)) for layer in kinds]
    assert torch.equal(*inside)
    assert (partly[0] - partly[1]).abs().max() > 0.01


@pytest.mark.parametrize("outside", OUTSIDE)
def test_without_a_query_projection_the_output_is_the_mean_of_the_samples(outside):
    layer, (query, reference, source) = make_layer(outside), inputs()
    torch.nn.init.zeros_(layer.query_proj.weight)
    torch.nn.init.zeros_(layer.query_proj.bias)
    torch.nn.init.zeros_(layer.sampling_offsets.weight)
    torch.nn.init.zeros_(layer.sampling_offsets.bias)
    reference = reference * 0.5 + 0.25
    value = layer.value_proj(source).view(2, 16, 4, 2)
    locations = reference[:, :, None, :, None].expand(-1, -1, 4, -1, 2, -1)
    mean = attend(value, SHAPES, locations, torch.full((2, 3, 4, 2, 2), 1 / 4, dtype=torch.float64))
    assert_close(layer(query, reference, source, pyramid_of(FULL, FULL)), layer.output_proj(mean), atol=1e-12, rtol=0)


def test_a_query_without_any_sample_in_the_image_reads_zero_and_has_finite_gradients():
    layer, (query, _, source) = make_layer(), inputs()
    query, source = query.requires_grad_(), source.requires_grad_()
    output, found = layer.attend_with_samples(
        query, torch.full((2, 3, 2, 2), 9.0).double(), source, pyramid_of(FULL, PART)
    )
    assert torch.equal(output, layer.output_proj.bias.expand_as(output))
    assert not found.weights.any()
    output.square().sum().backward()
    for gradient in (query.grad, source.grad, *(p.grad for p in layer.parameters())):
        assert gradient.isfinite().all()
    assert not query.grad.any()


def test_excluded_samples_take_no_weight_and_others_share_it():
    """One head, level and channel: of two samples one lies outside, the other reads the only cell."""
    weights = {}
    for outside in OUTSIDE:
        layer = KeyAwareDeformableAttention(embed_dim=1, num_heads=1, num_levels=1, num_points=2, outside=outside)
        layer = layer.double()
        with torch.no_grad():
            layer.sampling_offsets.bias.copy_(torch.tensor([0.0, 0.0, 3.0, 0.0]))
            for projection in (layer.query_proj, layer.value_proj):
                projection.weight.fill_(1), projection.bias.fill_(0)
        pyramid = Pyramid.of(((1, 1),), [((1, 1),)], device=torch.device("cpu"))
        source, query = torch.full((1, 1, 1), 2.0).double(), torch.full((1, 1, 1), 0.5).double()
        _, found = layer.attend_with_samples(query, torch.full((1, 1, 1, 2), 0.5).double(), source, pyramid)
        weights[outside] = found.weights.flatten()
    assert weights["excluded"].tolist() == [1, 0]
    e = torch.tensor(1.0, dtype=torch.float64).exp()  # the logit is 0.5 * 2
    assert_close(weights["zero"], torch.stack([e, torch.ones_like(e)]) / (e + 1))


def test_initial_weights_point_in_all_directions_and_projections_are_not_zero():
    torch.manual_seed(0)
    sizes = dict(embed_dim=8, num_heads=4, num_levels=2, num_points=2)
    layer, plain = KeyAwareDeformableAttention(**sizes), MultiScaleDeformableAttention(**sizes)
    assert torch.equal(layer.sampling_offsets.bias, plain.sampling_offsets.bias)
    assert not layer.sampling_offsets.weight.any()
    for projection in (layer.query_proj, layer.value_proj, layer.output_proj):
        assert projection.weight.std() > 0.1
        assert not projection.bias.any()


def test_channels_that_do_not_fit_the_heads_are_named():
    with pytest.raises(ValueError, match="embed_dim 10 must be a multiple of num_heads 4"):
        KeyAwareDeformableAttention(embed_dim=10, num_heads=4, num_levels=1, num_points=1)
