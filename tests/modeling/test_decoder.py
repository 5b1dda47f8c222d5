"""The decoder: references, refinement, masks."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.layers import MLP, FeedForward, MultiScaleDeformableAttention, SelfAttention, inverse_sigmoid
from sparse_detr.modeling.decoder.deformable import (
    BoxRefinement,
    Decoder,
    DeformableDecoderLayer,
    GivenPosition,
    LookForwardTwice,
    NoRefinement,
    QueryPosition,
    on_padded_levels,
)
from sparse_detr.modeling.decoder.query_position import (
    BoxPosition,
    ContentScale,
    embed_rows_first,
)
from sparse_detr.modeling.heads import PredictionHead, make_heads
from sparse_detr.structures import Queries
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((4, 5), (2, 3))


def make_decoder(refinement, count=3, **parts):
    torch.manual_seed(0)
    layer = DeformableDecoderLayer(
        self_attn=SelfAttention(embed_dim=32, num_heads=4, dropout=0.0),
        cross_attn=MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2, num_points=2),
        ffn=FeedForward(embed_dim=32, feedforward_dim=48, dropout=0.0),
        embed_dim=32,
        dropout=0.0,
    )
    layers = [copy.deepcopy(layer) for _ in range(count)]
    parts = {"query_position": GivenPosition(), **parts}
    decoder = Decoder(layers=layers, refinement=refinement, **parts).double()
    heads = nn.ModuleList(PredictionHead(embed_dim=32, num_classes=3) for _ in range(count)).double()
    shake(decoder)
    shake(heads)
    return decoder, heads


def make_queries(reference_size, *, count=4, batch=1, **options):
    generator = torch.Generator().manual_seed(2)
    content, position = torch.randn(2, batch, count, 32, generator=generator, dtype=torch.float64)
    reference = torch.rand(batch, count, reference_size, generator=generator, dtype=torch.float64) * 0.5 + 0.2
    return Queries(content=content, position=position, reference_points=reference.requires_grad_(), **options)


def decode(refinement, queries, **parts):
    decoder, heads = make_decoder(refinement, **parts)
    pyramid = make_pyramid(SHAPES, *[SHAPES] * queries.content.shape[0])
    return decoder(queries, make_tokens(pyramid), heads), heads


def test_references_shrink_to_the_unpadded_part_of_every_level():
    pyramid = make_pyramid(((4, 5), (2, 3)), ((2, 5), (1, 1)))
    box = torch.tensor([[[0.5, 0.25, 0.1, 0.2]]], dtype=torch.float64)
    boxes = on_padded_levels(box, pyramid)[0, 0]
    assert_close(boxes[0], torch.tensor([0.5, 0.125, 0.1, 0.1], dtype=torch.float64))
    assert_close(boxes[1], torch.tensor([0.5 / 3, 0.125, 0.1 / 3, 0.1], dtype=torch.float64))
    assert torch.equal(on_padded_levels(box[..., :2], pyramid)[0, 0], boxes[:, :2])


def test_a_layer_attends_to_queries_then_to_the_memory_then_feeds_forward():
    decoder, _ = make_decoder(NoRefinement(), count=1)
    layer, queries, pyramid = decoder.layers[0], make_queries(4), make_pyramid(SHAPES)
    tokens, points = make_tokens(pyramid), on_padded_levels(queries.reference_points, pyramid)
    memory = tokens.content
    result, _ = layer(queries.content, QueryPosition(queries.position, queries.reference_points), tokens, None)
    x = layer.self_attn_norm(queries.content + layer.self_attn(queries.content, queries.position, None))
    x = layer.cross_attn_norm(x + layer.cross_attn(x + queries.position, points, memory, pyramid))
    assert_close(result, layer.ffn_norm(x + layer.ffn(x)))


def test_layers_return_samples_only_if_asked_and_predict_the_same():
    decoder, heads = make_decoder(BoxRefinement())
    memory = make_tokens(make_pyramid(SHAPES))
    plain = decoder(make_queries(4), memory, heads)
    asked = decoder(make_queries(4), memory, heads, need_samples=True)
    assert plain.samples is None
    assert [samples.weights.shape for samples in asked.samples] == [(1, 4, 4, 2, 2)] * 3
    for one, other in zip(plain.predictions, asked.predictions, strict=True):
        assert_close((one.logits, one.boxes), (other.logits, other.boxes))


def test_refinement_starts_every_layer_from_the_boxes_of_the_layer_before():
    output, heads = decode(BoxRefinement(), make_queries(4))
    decoder, _ = make_decoder(BoxRefinement())
    queries, memory = make_queries(4), make_tokens(make_pyramid(SHAPES))
    content, reference = queries.content, queries.reference_points
    for layer, head, predicted in zip(decoder.layers, heads, output.predictions, strict=True):
        content, _ = layer(content, QueryPosition(queries.position, reference), memory, None)
        boxes = (head.box_embed(content) + inverse_sigmoid(reference)).sigmoid()
        assert_close(predicted.boxes, boxes)
        reference = boxes


def layer_references(refinement, queries):
    """Return the reference points that each layer got."""
    decoder, heads = make_decoder(refinement)
    references = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda _, arguments: references.append(arguments[1].reference_points))
    decoder(queries, make_tokens(make_pyramid(SHAPES)), heads)
    return references


def test_without_refinement_every_layer_starts_from_the_queries():
    first, *others = layer_references(NoRefinement(), make_queries(2))
    assert len(others) == 2
    assert all(torch.equal(first, other) for other in others)


def test_refined_references_are_detached():
    output, heads = decode(BoxRefinement(), make_queries(4))
    output.predictions[1].boxes.sum().backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in heads[0].parameters())
    assert any(parameter.grad.any() for parameter in heads[1].box_embed.parameters())


def test_the_first_references_are_not_detached():
    queries = make_queries(2)
    decode(BoxRefinement(), queries)[0].predictions[0].boxes.sum().backward()
    assert queries.reference_points.grad.any()


def test_a_reference_point_becomes_a_box_after_the_first_layer():
    output, _ = decode(BoxRefinement(), make_queries(2))
    assert all(layer.boxes.shape == (1, 4, 4) for layer in output.predictions)
    assert [points.shape[-1] for points in layer_references(BoxRefinement(), make_queries(2))] == [2, 4, 4]


def test_queries_that_fill_the_batch_change_no_other_query():
    valid = torch.tensor([[True, True, True, False]])
    few, changed = make_queries(4, valid=valid), make_queries(4, valid=valid)
    with torch.no_grad():
        changed.content[:, 3] += 100
    first, second = decode(BoxRefinement(), few)[0].predictions[-1], decode(BoxRefinement(), changed)[0].predictions[-1]
    assert torch.equal(first.logits[:, :3], second.logits[:, :3])
    assert torch.equal(first.boxes[:, :3], second.boxes[:, :3])


def boxes_after(head, content, reference, eps=1e-3):
    return (head.box_embed(content) + inverse_sigmoid(reference, eps)).sigmoid()


def test_look_forward_twice_moves_the_reference_by_the_content_before_the_norm_and_predicts_from_after_it():
    output, heads = decode(LookForwardTwice(), make_queries(4), norm=nn.LayerNorm(32), logit_eps=1e-3)
    decoder, _ = make_decoder(LookForwardTwice(), norm=nn.LayerNorm(32), logit_eps=1e-3)
    queries, memory = make_queries(4), make_tokens(make_pyramid(SHAPES))
    content, reference = queries.content, queries.reference_points
    for layer, head, predicted in zip(decoder.layers, heads, output.predictions, strict=True):
        content, _ = layer(content, QueryPosition(queries.position, reference), memory, None)
        assert_close(predicted.boxes, boxes_after(head, decoder.norm(content), reference))
        assert_close(predicted.logits, head.class_embed(decoder.norm(content)))
        reference = boxes_after(head, content, reference)


@pytest.mark.parametrize("layer", [1, 2])
def test_look_forward_twice_trains_the_box_head_of_a_layer_and_of_the_one_before_it_only(layer):
    output, heads = decode(LookForwardTwice(), make_queries(4), norm=nn.LayerNorm(32))
    output.predictions[layer].boxes.sum().backward()
    trained = [any(p.grad is not None and p.grad.any() for p in head.box_embed.parameters()) for head in heads]
    assert trained == [layer - 1 <= i <= layer for i in range(3)]


def test_a_box_is_embedded_rows_first_in_the_frame_of_the_image_or_of_the_padded_finest_level():
    torch.manual_seed(0)
    pyramid = make_pyramid(SHAPES, ((2, 5), (1, 3)))
    boxes = torch.rand(1, 4, 4, dtype=torch.float64)
    own, padded = (BoxPosition(embed_dim=32, frame=frame).double() for frame in ("image", "padded"))
    padded.load_state_dict(own.state_dict())
    queries = make_queries(4)
    assert_close(
        own(queries, boxes, queries.content, pyramid, layer=0).position,
        own.mlp(embed_rows_first(boxes, 16, dtype=torch.float64)),
    )
    shrunk = boxes * torch.tensor([1, 0.5, 1, 0.5], dtype=torch.float64)
    assert_close(
        padded(queries, boxes, queries.content, pyramid, layer=0).position,
        padded.mlp(embed_rows_first(shrunk, 16, dtype=torch.float64)),
    )
    first_row = embed_rows_first(torch.tensor([0.0, 0.25, 0.0, 0.0], dtype=torch.float64), 4, dtype=torch.float64)
    assert first_row[:2].tolist() == pytest.approx([1.0, 0.0])  # sine and cosine of a quarter turn
    assert first_row[4:6].tolist() == pytest.approx([0.0, 1.0])


def test_the_position_of_a_box_is_scaled_by_the_content_after_the_first_layer():
    position = BoxPosition(embed_dim=32, scale=ContentScale(sizes=(32, 32, 32))).double()
    queries, pyramid = make_queries(4), make_pyramid(SHAPES)
    first = position(queries, queries.reference_points, queries.content, pyramid, layer=0).position
    later = position(queries, queries.reference_points, queries.content, pyramid, layer=1).position
    assert_close(later, first * MLP.forward(position.scale, queries.content))


def test_queries_that_are_not_kept_are_not_attended_to():
    """No other query may attend to the first one, as for denoising queries."""
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[1:, 0] = False
    queries, changed = (make_queries(4, keep=keep) for _ in range(2))
    with torch.no_grad():
        changed.content[:, 0] += 100
    first, second = (decode(BoxRefinement(), x)[0].predictions[-1] for x in (queries, changed))
    assert torch.equal(first.boxes[:, 1:], second.boxes[:, 1:])
    assert not torch.equal(first.boxes[:, :1], second.boxes[:, :1])


def test_an_output_splits_into_the_first_queries_and_the_rest():
    decoder, heads = make_decoder(BoxRefinement())
    output = decoder(make_queries(4), make_tokens(make_pyramid(SHAPES)), heads, need_samples=True)
    for part, rows in zip(output.split(1), (slice(0, 1), slice(1, 4)), strict=True):
        assert torch.equal(part.predictions[2].logits, output.predictions[2].logits[:, rows])
        assert torch.equal(part.predictions[2].boxes, output.predictions[2].boxes[:, rows])
        assert torch.equal(part.samples[0].locations, output.samples[0].locations[:, rows])


@pytest.mark.parametrize("proposals", [False, True])
def test_heads_start_with_equal_weights_one_percent_and_a_small_first_box(proposals):
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
