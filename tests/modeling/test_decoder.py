"""The decoder: references, refinement, masks."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention, inverse_sigmoid
from sparse_detr.modeling.decoder import Decoder, DecoderLayer, on_padded_levels
from sparse_detr.modeling.heads import PredictionHead, make_heads
from sparse_detr.modeling.queries import Queries
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((4, 5), (2, 3))


def make_decoder(refine, count=3):
    torch.manual_seed(0)
    layer = DecoderLayer(
        self_attn=nn.MultiheadAttention(32, 4, batch_first=True),
        cross_attn=MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2, num_points=2),
        ffn=FeedForward(embed_dim=32, feedforward_dim=48, dropout=0.0),
        embed_dim=32,
        dropout=0.0,
    )
    decoder = Decoder(layers=[copy.deepcopy(layer) for _ in range(count)], refine=refine).double()
    heads = nn.ModuleList(PredictionHead(embed_dim=32, num_classes=3) for _ in range(count)).double()
    shake(decoder)
    shake(heads)
    return decoder, heads


def make_queries(reference_size, *, count=4, batch=1, valid=None):
    generator = torch.Generator().manual_seed(2)
    content, position = torch.randn(2, batch, count, 32, generator=generator, dtype=torch.float64)
    reference = torch.rand(batch, count, reference_size, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    return Queries(content=content, position=position, reference_points=reference.requires_grad_(), valid=valid)


def decode(refine, queries):
    decoder, heads = make_decoder(refine)
    pyramid = make_pyramid(SHAPES, *[SHAPES] * queries.content.shape[0])
    return decoder(queries, make_tokens(pyramid).content, pyramid, heads), heads


def test_references_shrink_to_the_real_part_of_every_level():
    pyramid = make_pyramid(((4, 5), (2, 3)), ((2, 5), (1, 1)))
    box = torch.tensor([[[0.5, 0.25, 0.1, 0.2]]], dtype=torch.float64)
    boxes = on_padded_levels(box, pyramid)[0, 0]
    assert_close(boxes[0], torch.tensor([0.5, 0.125, 0.1, 0.1], dtype=torch.float64))
    assert_close(boxes[1], torch.tensor([0.5 / 3, 0.125, 0.1 / 3, 0.1], dtype=torch.float64))
    assert torch.equal(on_padded_levels(box[..., :2], pyramid)[0, 0], boxes[:, :2])


def test_a_layer_attends_to_queries_then_to_the_memory_then_feeds_forward():
    decoder, _ = make_decoder(refine=False, count=1)
    layer, queries, pyramid = decoder.layers[0], make_queries(4), make_pyramid(SHAPES)
    memory, points = make_tokens(pyramid).content, on_padded_levels(queries.reference_points, pyramid)
    result, _ = layer(queries.content, queries.position, points, memory, pyramid, None)
    located = queries.content + queries.position
    x = layer.self_attn_norm(queries.content + layer.self_attn(located, located, queries.content)[0])
    x = layer.cross_attn_norm(x + layer.cross_attn(x + queries.position, points, memory, pyramid))
    assert_close(result, layer.ffn_norm(x + layer.ffn(x)))


def test_layers_say_where_they_looked_only_when_asked_and_predict_the_same():
    decoder, heads = make_decoder(True)
    pyramid = make_pyramid(SHAPES)
    memory = make_tokens(pyramid).content
    plain = decoder(make_queries(4), memory, pyramid, heads)
    asked = decoder(make_queries(4), memory, pyramid, heads, need_samples=True)
    assert plain.samples is None
    assert [samples.weights.shape for samples in asked.samples] == [(1, 4, 4, 2, 2)] * 3
    for one, other in zip(plain.predictions, asked.predictions, strict=True):
        assert_close((one.logits, one.boxes), (other.logits, other.boxes))


def test_refinement_starts_every_layer_from_the_boxes_before_it():
    output, heads = decode(True, make_queries(4))
    decoder, _ = make_decoder(True)
    queries, pyramid = make_queries(4), make_pyramid(SHAPES)
    memory, content, reference = make_tokens(pyramid).content, queries.content, queries.reference_points
    for layer, head, predicted in zip(decoder.layers, heads, output.predictions, strict=True):
        points = on_padded_levels(reference, pyramid)
        content, _ = layer(content, queries.position, points, memory, pyramid, None)
        boxes = (head.box_embed(content) + inverse_sigmoid(reference)).sigmoid()
        assert_close(predicted.boxes, boxes)
        reference = boxes


def seen_references(refine, queries):
    """The reference points that each layer was given."""
    decoder, heads = make_decoder(refine)
    seen = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    pyramid = make_pyramid(SHAPES)
    decoder(queries, make_tokens(pyramid).content, pyramid, heads)
    return seen


def test_without_refinement_every_layer_starts_from_the_queries():
    first, *others = seen_references(False, make_queries(2))
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)


def test_refined_references_are_detached():
    output, heads = decode(True, make_queries(4))
    output.predictions[1].boxes.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in heads[0].parameters())
    assert any(parameter.grad.any() for parameter in heads[1].box_embed.parameters())


def test_the_first_references_are_not_detached():
    queries = make_queries(2)
    decode(True, queries)[0].predictions[0].boxes.sum().backward()
    assert queries.reference_points.grad.any()


def test_a_reference_point_becomes_a_box_after_the_first_layer():
    output, _ = decode(True, make_queries(2))
    assert all(layer.boxes.shape == (1, 4, 4) for layer in output.predictions)
    assert [points.shape[-1] for points in seen_references(True, make_queries(2))] == [2, 4, 4]


def test_queries_that_fill_the_batch_change_no_other_query():
    valid = torch.tensor([[True, True, True, False]])
    few, noisy = make_queries(4, valid=valid), make_queries(4, valid=valid)
    with torch.no_grad():
        noisy.content[:, 3] += 100
    first, second = decode(True, few)[0].predictions[-1], decode(True, noisy)[0].predictions[-1]
    assert torch.equal(first.logits[:, :3], second.logits[:, :3])
    assert torch.equal(first.boxes[:, :3], second.boxes[:, :3])


@pytest.mark.parametrize("proposals", [False, True])
def test_heads_start_alike_with_one_percent_and_a_small_first_box(proposals):
    heads = make_heads(embed_dim=32, num_classes=3, decoder_layers=3, encoder_layers=2, proposals=proposals)
    everything = [*heads.decoder, *heads.encoder, *([heads.proposals] if proposals else [])]
    assert len({id(head) for head in everything}) == 5 + proposals
    for head in everything:
        assert head.class_embed.bias.tolist() == pytest.approx([-4.59512] * 3, abs=1e-5)
        assert torch.equal(head.class_embed.weight, everything[0].class_embed.weight)
        assert not head.box_embed.layers[-1].weight.any()
    first, *others = (head.box_embed.layers[-1].bias.tolist() for head in everything)
    assert first == [0, 0, 0, 0] if proposals else [0, 0, -2, -2]
    assert others == [[0, 0, 0, 0]] * (4 + proposals)


def test_tied_heads_are_one_module():
    heads = make_heads(embed_dim=32, num_classes=3, decoder_layers=3, tied=True)
    assert heads.decoder[0] is heads.decoder[1] is heads.decoder[2]
    assert heads.decoder[2].box_embed.layers[-1].bias.tolist() == [0, 0, -2, -2]
