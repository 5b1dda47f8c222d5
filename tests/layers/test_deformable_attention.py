"""The deformable attention layer against plain loops, and its initial weights."""

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import MultiScaleDeformableAttention
from sparse_detr.structures import Pyramid
from tests.ops.reference import attend

SHAPES = ((3, 4), (2, 2))


@pytest.fixture
def attention():
    """Make a layer of four heads of two channels, with random weights."""
    torch.manual_seed(0)
    layer = MultiScaleDeformableAttention(embed_dim=8, num_heads=4, num_levels=2, num_points=2).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def pyramid_of(*valid_shapes):
    return Pyramid.of(SHAPES, valid_shapes, device=torch.device("cpu"))


def inputs(reference_size):
    """Make query, reference points and source for two images and three queries."""
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(2, 3, 8, generator=generator, dtype=torch.float64)
    reference = torch.rand(2, 3, 2, reference_size, generator=generator, dtype=torch.float64)
    return query, reference, torch.randn(2, 16, 8, generator=generator, dtype=torch.float64)


def loop_locations(layer, query, reference):
    """Compute the sampling locations one at a time."""
    offsets = layer.sampling_offsets(query).view(2, 3, 4, 2, 2, 2)
    locations = torch.empty_like(offsets)
    for index in torch.cartesian_prod(*map(torch.arange, offsets.shape[:-1])).tolist():
        image, row, _, level, _ = index
        height, width = SHAPES[level]
        start, size = reference[image, row, level, :2], reference[image, row, level, 2:]
        shift = offsets[tuple(index)]
        step = shift / 2 * size * 0.5 if len(size) else shift / torch.tensor([width, height])
        locations[tuple(index)] = start + step
    return locations


@pytest.mark.parametrize("reference_size", [2, 4])
def test_equals_plain_loops_for_reference_points_and_boxes(attention, reference_size):
    query, reference, source = inputs(reference_size)
    full, part = ((3, 4), (2, 2)), ((2, 3), (1, 2))
    pyramid = pyramid_of(full, part)
    value = attention.value_proj(source).masked_fill(pyramid.padding_mask[..., None], 0).view(2, 16, 4, 2)
    weights = attention.attention_weights(query).view(2, 3, 4, 4).softmax(-1).view(2, 3, 4, 2, 2)
    expected = attention.output_proj(attend(value, SHAPES, loop_locations(attention, query, reference), weights))
    assert_close(attention(query, reference, source, pyramid), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("reference_size", [2, 4])
def test_sample_and_read_equal_forward_with_the_same_gradients(attention, reference_size):
    query, reference, source = (x.requires_grad_() for x in inputs(reference_size))
    pyramid = pyramid_of(((3, 4), (2, 2)), ((2, 3), (1, 2)))
    at_once = attention(query, reference, source, pyramid)
    in_steps = attention.read(source, attention.sample(query, reference, pyramid), pyramid)
    assert_close(at_once, in_steps)
    leaves = (query, reference, source, *attention.parameters())
    assert_close(*(torch.autograd.grad(output.square().sum(), leaves) for output in (at_once, in_steps)))


def test_under_autocast_locations_keep_more_bits_than_the_value(attention):
    """In bfloat16 a location near 1 has an error of a tenth of a pixel on a map of 60 cells."""
    layer, pyramid = attention.float(), pyramid_of(((3, 4), (2, 2)), ((2, 3), (1, 2)))
    query, reference, source = (x.float() for x in inputs(2))
    expected = layer(query, reference, source, pyramid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, samples = layer(query, reference, source, pyramid), layer.sample(query, reference, pyramid)
        read = layer.read(source, samples, pyramid)
    assert output.dtype == read.dtype == torch.bfloat16
    assert samples.locations.dtype == samples.weights.dtype == torch.float32
    assert_close(output, read)
    assert_close(output.float(), expected, atol=0.1, rtol=0)


def test_padding_reads_as_zero_whatever_it_holds(attention):
    query, reference, source = inputs(2)
    pyramid = pyramid_of(((3, 4), (2, 2)), ((2, 3), (1, 2)))
    noise = torch.where(pyramid.padding_mask[..., None], 1e6 * torch.randn_like(source), source)
    assert torch.equal(attention(query, reference, noise, pyramid), attention(query, reference, source, pyramid))
    broken = source.masked_fill(pyramid.padding_mask[..., None], float("nan"))
    assert torch.equal(attention(query, reference, broken, pyramid), attention(query, reference, source, pyramid))


def test_the_layer_starts_with_equal_weights_and_one_direction_for_each_head():
    layer = MultiScaleDeformableAttention(embed_dim=8, num_heads=4, num_levels=2, num_points=3)
    query, reference, _ = inputs(2)
    samples = layer.sample(query.float(), reference.float(), pyramid_of(((3, 4), (2, 2)), ((3, 4), (2, 2))))
    assert_close(samples.weights, torch.full((2, 3, 4, 2, 3), 1 / 6))
    pixels = (samples.locations - reference.float()[:, :, None, :, None]) * torch.tensor([[4, 3], [2, 2]])[:, None]
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point in range(3):
        expected = (directions * (point + 1))[:, None].expand(4, 2, 2)
        assert_close(pixels[1, 2, :, :, point], expected, atol=1e-5, rtol=0)


def test_an_offset_of_num_points_is_half_of_a_reference_box():
    layer = MultiScaleDeformableAttention(embed_dim=8, num_heads=4, num_levels=2, num_points=2)
    box = torch.tensor([0.5, 0.5, 0.2, 0.4]).expand(2, 1, 2, 4)
    samples = layer.sample(torch.zeros(2, 1, 8), box, pyramid_of(((3, 4), (2, 2)), ((3, 4), (2, 2))))
    # Offsets of head 0 go right and of head 1 down, by one and two pixels; two pixels are half of the box.
    assert_close(samples.locations[0, 0, 0, 0], torch.tensor([[0.55, 0.5], [0.6, 0.5]]), atol=1e-6, rtol=0)
    assert_close(samples.locations[0, 0, 1, 0], torch.tensor([[0.5, 0.6], [0.5, 0.7]]), atol=1e-6, rtol=0)


def test_channels_that_heads_cannot_share_are_refused():
    with pytest.raises(ValueError, match="embed_dim 10 must be a multiple of num_heads 4"):
        MultiScaleDeformableAttention(embed_dim=10, num_heads=4, num_levels=1, num_points=1)
