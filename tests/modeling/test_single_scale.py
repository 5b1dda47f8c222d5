"""From one map to tokens."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from sparse_detr.layers import embed_tokens
from sparse_detr.layers.position_encoding import sine_embedding
from sparse_detr.modeling.tokenizers.single_scale import SingleScaleTokenizer
from tests.modeling.tiny import make_pyramid


def make_tokenizer(padding="exact", **options):
    torch.manual_seed(0)
    return SingleScaleTokenizer(in_channels=6, stride=32, embed_dim=8, padding=padding, **options).double()


def test_a_width_that_the_positions_cannot_fill_is_refused():
    with pytest.raises(ValueError, match="embed_dim must be a multiple of 4, got 6"):
        SingleScaleTokenizer(in_channels=6, stride=32, embed_dim=6)


def random_map(height, width, batch=1):
    return torch.randn(batch, 6, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_tokens_are_the_map_through_one_linear_layer_row_by_row():
    tokenizer, x = make_tokenizer(), random_map(3, 4)
    tokens = tokenizer([x], [(96, 128)], (96, 128))
    weight, bias = tokenizer.projection.weight[:, :, 0, 0], tokenizer.projection.bias
    assert_close(tokens.content[0, 6], weight @ x[0, :, 1, 2] + bias)
    assert tokens.pyramid.spatial_shapes == ((3, 4),)
    assert not tokens.pyramid.has_padding


@pytest.mark.parametrize("temperature", [20.0, 10.0])
def test_positions_of_valid_tokens_are_the_sine_embedding_of_detr(temperature):
    tokenizer = make_tokenizer(position_temperature=temperature)
    sizes = [(96, 128), (40, 100), (1, 1)]
    tokens = tokenizer([random_map(3, 4, batch=3)], sizes, (96, 128))
    expected = embed_tokens(tokens.pyramid, 8, dtype=torch.float64, temperature=temperature, offset=0.0)
    valid = ~tokens.pyramid.padding_mask
    assert valid.sum(1).tolist() == [12, 8, 1]
    assert_close(tokens.position[valid], expected[valid])


def test_padding_counts_the_valid_tokens_of_its_own_row_and_column():
    """Of 2 x 3 cells 1 x 2 are valid: (0, 2) is right of them, (1, 1) below, (1, 2) neither."""
    tokenizer = make_tokenizer()
    position = tokenizer._position(make_pyramid(((2, 3),), ((1, 2),)))[0].view(2, 3, 8)
    turn, nothing = 2 * math.pi / (1 + 1e-6), 0.0
    angles = {
        (0, 0): (turn, 2 * math.pi / (2 + 1e-6)),
        (0, 2): (nothing, 4 * math.pi / (2 + 1e-6)),
        (1, 1): (turn, nothing),
        (1, 2): (nothing, nothing),
    }
    for cell, pair in angles.items():
        expected = sine_embedding(torch.tensor(pair, dtype=torch.float64), 4, 20.0).flatten()
        assert_close(position[cell], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("padding", "count"), [("exact", 1 * 3), ("released", 2 * 3)])
def test_valid_tokens_are_rounded_up_or_by_nearest_neighbour(padding, count):
    """26 of 100 rows, 4 cells: the nearest pixels are 0, 25, 50, 75; 70 of 96 columns, 3 cells: 0, 32, 64."""
    tokenizer = make_tokenizer(padding)
    pyramid = tokenizer.pyramid([random_map(4, 3)], [(26, 70)], (100, 96))
    mask = torch.ones(1, 1, 100, 96)
    mask[..., :26, :70] = 0
    if padding == "released":
        assert torch.equal(pyramid.padding_mask[0], F.interpolate(mask, size=(4, 3)).flatten().bool())
    assert (~pyramid.padding_mask).sum() == count


def test_valid_tokens_are_those_of_the_image_alone():
    tokenizer, x = make_tokenizer(), random_map(2, 3)
    alone = tokenizer([x], [(64, 96)], (64, 96))
    batched = tokenizer([F.pad(x, (0, 2, 0, 1), value=7.0)], [(64, 96)], (96, 160))
    valid = ~batched.pyramid.padding_mask
    assert_close(batched.content[valid], alone.content[0])
    assert torch.equal(batched.position[valid], alone.position[0])
