"""The attention map of the decoder, and the loss of token scores against it, by hand."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import AttentionSamples
from sparse_detr.modeling.decoder import DecoderAttentionMap
from sparse_detr.modeling.training import AttentionMapSupervision, NoSupervision
from sparse_detr.structures import DetectorOutput, TopKTokens
from tests.modeling.tiny import make_pyramid


def samples_at(*cells, shape=(2, 3)):
    """Make samples of one head and point: every query (x, y, weight) reads a cell centre of a single level."""
    centres = torch.tensor([[(x + 0.5) / shape[1], (y + 0.5) / shape[0]] for x, y, _ in cells], dtype=torch.float64)
    weights = torch.tensor([weight for *_, weight in cells], dtype=torch.float64)
    return AttentionSamples(locations=centres.view(1, -1, 1, 1, 1, 2), weights=weights.view(1, -1, 1, 1, 1))


def output_of(scores, attention, counts, *, valid_shapes, shape=(1, 4)):
    scores, attention = torch.tensor(scores), torch.tensor(attention)
    selection = TopKTokens.of(
        torch.zeros(len(counts), max(counts), dtype=torch.long), torch.tensor(counts), num_tokens=4
    )
    return DetectorOutput(
        groups=(),
        predictions=None,
        pyramid=make_pyramid((shape,), *valid_shapes),
        selection=selection,
        token_scores=scores,
        attention_map=attention,
        image_sizes=((8, 32),) * len(counts),
    )


def test_the_map_sums_attention_over_layers_and_queries():
    layers = [samples_at((0, 0, 0.5), (1, 1, 0.25)), samples_at((0, 0, 0.125), (2, 1, 1.0))]
    received = DecoderAttentionMap()(layers, make_pyramid(((2, 3),)), None)
    assert received.tolist() == [pytest.approx([0.625, 0, 0, 0, 0.25, 1.0])]
    assert not received.requires_grad


def test_queries_that_fill_the_batch_are_not_in_the_map():
    layers = [samples_at((0, 0, 0.5), (1, 1, 0.25))] * 2
    received = DecoderAttentionMap()(layers, make_pyramid(((2, 3),)), torch.tensor([[True, False]]))
    assert received.tolist() == [pytest.approx([1.0, 0, 0, 0, 0, 0])]


def test_the_released_map_is_half_a_pixel_to_the_right_and_below():
    received = DecoderAttentionMap(alignment="released")([samples_at((0, 0, 1.0))], make_pyramid(((2, 3),)), None)
    assert received.tolist() == [pytest.approx([0.25, 0.25, 0, 0.25, 0.25, 0])]


def test_as_many_tokens_are_positive_as_the_image_keeps():
    """Image 0 keeps two tokens, and 1 and 3 got most attention; image 1 keeps one of three, and token 0 got most."""
    scores = [[0.0, 2.0, -1.0, 3.0], [1.0, -2.0, 0.5, -9.0]]
    attention = [[0.1, 0.9, 0.2, 0.8], [0.7, 0.6, 0.1, 5.0]]
    output = output_of(scores, attention, [2, 1], valid_shapes=(((1, 4),), ((1, 3),)))
    loss = AttentionMapSupervision(weight=2.0)(output, [])["loss_token_score"]
    positive, negative = torch.tensor([2.0, 3.0, 1.0]), torch.tensor([0.0, -1.0, -2.0, 0.5])
    softplus = torch.nn.functional.softplus
    assert_close(loss, 2 * (softplus(-positive).sum() + softplus(negative).sum()) / 7)


def test_released_padding_is_negative():
    output = output_of([[1.0, -2.0, 0.5, -2.0]], [[0.7, 0.6, 0.1, 5.0]], [1], valid_shapes=(((1, 3),),))
    loss = AttentionMapSupervision(padding="negative")(output, [])["loss_token_score"]
    softplus = torch.nn.functional.softplus
    terms = softplus(torch.tensor([-1.0, -2.0, 0.5, -2.0]))
    assert_close(loss, terms.mean())


def test_scores_that_rank_padding_last_give_a_finite_loss_and_gradient():
    output = output_of([[1.0, -2.0, 0.5, float("-inf")]], [[0.7, 0.6, 0.1, 5.0]], [1], valid_shapes=(((1, 3),),))
    output.token_scores.requires_grad_()
    loss = AttentionMapSupervision()(output, [])["loss_token_score"]
    loss.backward()
    assert loss.isfinite()
    assert output.token_scores.grad.isfinite().all()
    assert output.token_scores.grad[0, 3] == 0


def test_a_decoder_without_sampling_points_cannot_supervise_scores():
    output = replace(output_of([[0.0] * 4], [[0.0] * 4], [1], valid_shapes=(((1, 4),),)), attention_map=None)
    with pytest.raises(
        ValueError,
        match="a decoder with full attention, which has no such map; choose a scorer",
    ):
        AttentionMapSupervision()(output, [])


def test_no_supervision_adds_no_loss_and_needs_no_map():
    assert NoSupervision()(None, []) == {}
    assert not NoSupervision.needs_attention_map
