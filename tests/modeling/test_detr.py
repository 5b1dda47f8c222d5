"""DETR and Conditional DETR: the whole decoder against PyTorch's layers, and the parts by hand."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.layers import MLP, FeedForward, SelfAttention, inverse_sigmoid
from sparse_detr.layers.attention import CrossAttention
from sparse_detr.modeling.decoder import ConditionalPosition, ContentScale, FullAttentionDecoderLayer
from sparse_detr.modeling.decoder.deformable import QueryPosition
from sparse_detr.modeling.detector import BestClassDetections
from sparse_detr.modeling.heads import make_heads
from sparse_detr.modeling.queries import LearnedPositions
from sparse_detr.structures import PredictionGroup, Queries
from tests.modeling.tiny import SIZES, build, make_pyramid, make_tokens, picture

HEADS, DIM = 4, 32
PADDED = make_pyramid(((3, 4),), ((3, 4),), ((2, 3),))
IMAGES = [picture(96, 64), picture(70, 125, boxes=((0.1, 0.1, 0.3, 0.9),))]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_layer():
    torch.manual_seed(0)
    layer = FullAttentionDecoderLayer(
        self_attn=SelfAttention(embed_dim=DIM, num_heads=HEADS, dropout=0.0),
        cross_attn=CrossAttention(embed_dim=DIM, num_heads=HEADS, dropout=0.0),
        ffn=FeedForward(embed_dim=DIM, feedforward_dim=48, dropout=0.0),
        embed_dim=DIM,
        dropout=0.0,
    )
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer.double()


def of_pytorch(attention):
    """Return PyTorch's layer with the weights of ours."""
    layer = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    layer.load_state_dict(attention.state_dict())
    return layer


def test_a_layer_is_that_of_pytorch_with_positions_at_queries_and_keys():
    """`nn.TransformerDecoderLayer` has no positions, so its three steps stand here; only its attention is called."""
    layer, memory = make_layer(), make_tokens(PADDED, DIM)
    content, position = random(2, 5, DIM), random(2, 5, DIM, seed=1)
    query = content + position
    x = layer.self_attn_norm(content + of_pytorch(layer.self_attn)(query, query, content)[0])
    cross = of_pytorch(layer.cross_attn)
    key, padding = memory.content + memory.position, memory.pyramid.padding_mask
    assert padding.any()
    x = layer.cross_attn_norm(x + cross(x + position, key, memory.content, key_padding_mask=padding)[0])
    expected = layer.ffn_norm(x + layer.ffn.linear2(layer.ffn.linear1(x).relu()))
    points = torch.full((2, 5, 2), 0.5, dtype=torch.float64)
    result, samples = layer(content, QueryPosition(position, points), memory, None, need_samples=True)
    assert_close(result, expected)
    assert samples is None


def test_queries_do_not_attend_to_padding_of_the_memory():
    layer, memory = make_layer(), make_tokens(PADDED, DIM)
    position = QueryPosition(random(2, 5, DIM, seed=1), torch.full((2, 5, 2), 0.5))
    before, _ = layer(random(2, 5, DIM), position, memory, None)
    memory.content[PADDED.padding_mask] += 1
    after, _ = layer(random(2, 5, DIM), position, memory, None)
    assert torch.equal(before, after)


def test_cross_attention_refuses_heads_that_do_not_divide_the_channels():
    with pytest.raises(ValueError, match="embed_dim 30 must be a multiple of num_heads 4"):
        CrossAttention(embed_dim=30, num_heads=4, dropout=0.0)


def test_queries_of_detr_are_positions_without_content_and_their_boxes_are_relative_to_nothing():
    queries = LearnedPositions(num_queries=3, embed_dim=8)
    made = queries(torch.zeros(2, 7, 8), None)
    assert not made.content.any()
    assert torch.equal(made.position[1], queries.embedding.weight)
    assert made.reference_points.tolist() == [[[0.5, 0.5]] * 3] * 2
    assert not inverse_sigmoid(made.reference_points).any()


def test_reference_points_of_conditional_detr_come_from_the_positions_with_a_gradient():
    torch.manual_seed(0)
    queries = LearnedPositions(num_queries=3, embed_dim=8, reference_points=MLP(sizes=(8, 8, 2)))
    made = queries(torch.zeros(2, 7, 8), None)
    first, last = queries.reference_points.linears
    expected = last(first(queries.embedding.weight).relu()).sigmoid()
    assert_close(made.reference_points[1], expected)
    made.reference_points.sum().backward()
    assert (queries.embedding.weight.grad.abs().sum(-1) > 0).all()


def test_every_box_of_detr_is_what_its_head_says_and_every_layer_shares_a_norm():
    model = build("detr")
    output = model.outputs(IMAGES)
    assert output.pyramid.has_padding
    normed = []
    hook = model.decoder.norm.register_forward_hook(lambda _, __, result: normed.append(result))
    groups = model.outputs(IMAGES).groups
    hook.remove()
    assert len(groups) == len(normed) == SIZES["decoder_layers"]
    for group, x in zip(groups, normed, strict=True):
        assert_close(group.boxes, model.decoder_heads[0].box_embed(x).sigmoid())
        assert_close(group.logits, model.decoder_heads[0].class_embed(x))


@pytest.mark.parametrize("name", ["detr", "conditional"])
def test_the_encoder_adds_positions_as_they_are(name):
    """One layer against PyTorch's attention, for the image without padding."""
    model, tokens = build(name, encoder_layers=1), []
    hook = model.encoder.register_forward_hook(lambda _, given, result: tokens.append((given[0], result.memory)))
    model.outputs(IMAGES[:1])
    hook.remove()
    ((given, memory),) = tokens
    (layer,) = model.encoder.layers
    attention = nn.MultiheadAttention(SIZES["embed_dim"], SIZES["num_heads"], batch_first=True).double()
    attention.load_state_dict(layer.self_attn.state_dict())
    query = given.content + given.position
    x = layer.self_attn_norm(given.content + attention(query, query, given.content)[0])
    assert_close(memory, layer.ffn_norm(x + layer.ffn.linear2(layer.ffn.linear1(x).relu())))
    assert model.encoder.position_scale is None


def twos():
    """Return a `ContentScale` that always gives 2."""
    network = ContentScale(sizes=(8, 8, 8)).double()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(network.layers[-1].bias, 2.0)
    return network


@pytest.mark.parametrize(("scale", "layer", "factor"), [(twos(), 0, 1), (twos(), 1, 2), (None, 1, 1)])
def test_the_point_of_a_query_is_embedded_row_first_and_scaled_from_the_second_layer_on(scale, layer, factor):
    """Point (1/4, 1/2): sine and cosine of pi and pi / 100 for the row, of pi / 2 and pi / 200 for the column."""
    small = math.pi / 100
    rows, columns = [0.0, -1.0, math.sin(small), math.cos(small)], [1.0, 0.0, math.sin(small / 2), math.cos(small / 2)]
    content, position = torch.zeros(1, 1, 8, dtype=torch.float64), random(1, 1, 8)
    points = torch.tensor([[[0.25, 0.5]]], dtype=torch.float64)
    part = ConditionalPosition(scale=scale)
    made = part(Queries(content, position, points), points, content, PADDED, layer=layer)
    expected = factor * torch.tensor(rows + columns, dtype=torch.float64)
    assert_close(made.spatial[0, 0], expected, atol=1e-12, rtol=0)
    assert made.position is position


def test_boxes_of_conditional_detr_are_relative_to_one_point_in_every_layer():
    model = build("conditional")
    normed = []
    model.decoder.norm.register_forward_hook(lambda _, __, result: normed.append(result))
    groups = model.outputs(IMAGES).groups
    logits = model.queries.reference_points(model.queries.embedding.weight)
    for group, x in zip(groups, normed, strict=True):
        assert_close(group.boxes, (model.decoder_heads[0].box_embed(x) + nn.functional.pad(logits, (0, 2))).sigmoid())


def detect(logits, boxes, *, valid=None, class_channels=None):
    group = PredictionGroup("decoder_5", "", torch.tensor([logits]), torch.tensor([boxes]), valid)
    return BestClassDetections()(group, [(100, 200)], class_channels)[0]


def test_the_best_class_of_every_query_is_detected_also_where_no_object_is_likelier():
    boxes = [[0.5, 0.5, 0.2, 0.4], [0.25, 0.25, 0.5, 0.5]]
    found = detect([[math.log(2.0), 0.0, math.log(5.0)], [0.0, math.log(6.0), 0.0]], boxes)
    assert found.pred_classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([2 / 8, 6 / 8])
    expected = torch.tensor([[80.0, 30.0, 120.0, 70.0], [0.0, 0.0, 100.0, 50.0]])
    assert_close(found.pred_boxes.tensor, expected, atol=1e-4, rtol=0)


def test_rows_that_fill_the_batch_and_logits_without_a_class_are_not_detected():
    boxes = [[0.5, 0.5, 0.1, 0.1]] * 2
    found = detect([[9.0, 0.0], [1.0, 0.0]], boxes, valid=torch.tensor([[False, True]]))
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-1))])
    found = detect([[0.0, 3.0, 1.0, 0.0]] * 2, boxes, class_channels=[0, 2])
    assert found.pred_classes.tolist() == [1, 1]


def test_boxes_start_anywhere_or_at_their_reference():
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "num_classes": 3, "decoder_layers": 2, "tied": True, "size_bias": 0.0}
    free, bound = (make_heads(**sizes, box_start=start).decoder[0] for start in ("anywhere", "reference"))
    assert free.box_embed.linears[-1].weight.abs().amin() > 0
    assert free.box_embed.linears[-1].bias.unique().numel() == 4
    assert not bound.box_embed.linears[-1].weight.any()
