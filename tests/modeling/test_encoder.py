"""The deformable encoder on some tokens, against the same on all tokens and against a loop."""

import copy

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention
from sparse_detr.modeling.encoder.deformable import (
    DeformableEncoder,
    DeformableEncoderLayer,
    TokenRows,
    encoder_reference_points,
)
from sparse_detr.structures import AllTokens, CascadedTokens, TopKTokens
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((4, 5), (2, 3))
PADDED = (SHAPES, ((2, 3), (1, 2)))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2, num_points=2)
    ffn = FeedForward(embed_dim=32, feedforward_dim=48, dropout=0.0)
    layer = DeformableEncoderLayer(self_attn=attention, ffn=ffn, embed_dim=32, dropout=0.0)
    encoder = DeformableEncoder(layers=[layer, copy.deepcopy(layer), copy.deepcopy(layer)]).double()
    shake(encoder)
    return encoder


def some_tokens(*counts):
    """Select the first `counts` tokens of each image, in a random order of all 26."""
    generator = torch.Generator().manual_seed(5)
    order = torch.stack([torch.randperm(26, generator=generator) for _ in counts])
    return TopKTokens.of(order[:, : max(counts)], torch.tensor(counts), num_tokens=26)


def test_keeping_every_token_equals_the_dense_encoder_on_valid_tokens(encoder):
    tokens = make_tokens(make_pyramid(SHAPES, *PADDED))
    dense = AllTokens(tokens.pyramid)
    counts = dense.counts
    order = torch.stack([row.int().argsort(stable=True) for row in tokens.pyramid.padding_mask])
    everything = TopKTokens.of(order, counts, num_tokens=26)
    valid = ~tokens.pyramid.padding_mask
    assert_close(
        encoder(tokens, everything, None).memory[valid], encoder(tokens, dense, None).memory[valid], atol=1e-12, rtol=0
    )


def test_the_memory_equals_a_loop_that_reads_all_tokens_and_writes_the_kept_ones(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES)), some_tokens(7)
    rows = selection.indices[0]
    assert_close(encoder(tokens, selection, None).memory, looped(encoder, tokens, [rows] * 3), atol=1e-12, rtol=0)


def test_a_cascade_refines_fewer_and_fewer_tokens(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES)), some_tokens(9)
    rows, nested = selection.indices[0], cascade(selection, (9,), (5,), (2,))
    output = encoder(tokens, nested, None)
    assert_close(output.memory, looped(encoder, tokens, [rows, rows[:5], rows[:2]]), atol=1e-12, rtol=0)
    assert [layer.shape[1] for layer in output.layers] == [9, 5, 2]


def test_a_cascade_of_equal_shares_equals_one_selection(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES, *PADDED)), some_tokens(6, 3)
    nested = cascade(selection, *[(6, 3)] * 3)
    assert torch.equal(encoder(tokens, nested, None).memory, encoder(tokens, selection, None).memory)


def test_a_cascade_must_be_as_long_as_the_encoder(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES)), some_tokens(6)
    with pytest.raises(ValueError, match="schedule has 2 shares, but the encoder 3 layers; give one share a layer"):
        encoder(tokens, cascade(selection, (6,), (4,)), None)


def test_a_static_source_is_the_input_tokens(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES)), some_tokens(7)
    updated, encoder.source = encoder(tokens, selection, None).memory, "static"
    expected = looped(encoder, tokens, [selection.indices[0]] * 3, source=tokens.content)
    static = encoder(tokens, selection, None).memory
    assert_close(static, expected, atol=1e-12, rtol=0)
    assert (static - updated).abs().max() > 1e-3


def looped(encoder, tokens, rows, *, source=None):
    """Compute the memory of one image in a loop; layer i reads all tokens, or `source`, and writes `rows[i]`."""
    memory, references = tokens.content.clone(), encoder_reference_points(tokens.pyramid, torch.float64)
    for layer, kept in zip(encoder.layers, rows, strict=True):
        sliced = TokenRows(memory[:, kept], tokens.position[:, kept], references[:, kept], valid=None)
        memory[:, kept] = layer(sliced, memory.clone() if source is None else source, tokens.pyramid, None)
    return memory


def cascade(selection, *counts):
    """Make a cascade of the selection; `counts` are the kept tokens of every layer and image."""
    rows = tuple(map(max, counts))
    return CascadedTokens.nested(selection.indices, torch.tensor(counts), rows, num_tokens=selection.num_tokens)


def test_tokens_that_are_not_kept_stay_unchanged(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES, *PADDED)), some_tokens(6, 3)
    memory = encoder(tokens, selection, None).memory
    assert torch.equal(memory[~selection.keep], tokens.content[~selection.keep])
    assert not (memory[selection.keep] == tokens.content[selection.keep]).any()


def test_the_output_holds_the_selected_tokens_after_every_layer(encoder):
    tokens, selection = make_tokens(make_pyramid(SHAPES)), some_tokens(6)
    output = encoder(tokens, selection, None)
    assert [tuple(layer.shape) for layer in output.layers] == [(1, 6, 32)] * 3
    assert torch.equal(selection.gather(output.memory), output.layers[-1])


def test_reference_points_are_centres_on_every_padded_level():
    pyramid = make_pyramid(((3, 4), (2, 2)), ((2, 3), (2, 1)))
    references = encoder_reference_points(pyramid, torch.float32)[0]
    assert_close(references[6], torch.tensor([[0.625, 0.5], [0.4166667, 0.75]]))
    assert_close(references[15], torch.tensor([[1.125, 0.5], [0.75, 0.75]]))
