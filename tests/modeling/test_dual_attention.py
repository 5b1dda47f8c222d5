"""Dual attention: object tokens attend to each other before the deformable attention."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention
from sparse_detr.modeling.encoder.deformable import DeformableEncoder, DeformableEncoderLayer, selected_rows
from sparse_detr.modeling.encoder.dual_attention import DualAttentionLayer, ObjectAttention
from sparse_detr.modeling.heads import PredictionHead, Proposals
from sparse_detr.structures import CascadedTokens, TopKTokens
from tests.modeling.tiny import make_pyramid, make_tokens, shake

SHAPES = ((4, 5), (2, 3))


def make_layer(**options):
    torch.manual_seed(0)
    layer = DualAttentionLayer(
        object_attn=ObjectAttention(32, 4, batch_first=True),
        self_attn=MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=2, num_points=2),
        ffn=FeedForward(embed_dim=32, feedforward_dim=48, dropout=0.0),
        embed_dim=32,
        dropout=0.0,
        **{"num_objects": 3, **options},
    ).double()
    shake(layer)
    return layer


@pytest.fixture
def head():
    torch.manual_seed(1)
    head = PredictionHead(embed_dim=32, num_classes=5).double()
    nn.init.normal_(head.class_embed.weight)
    return head


def proposed(head):
    """Make proposals that have a head only."""
    return Proposals(box_logits=None, valid=None, keep=None, head=head)


@pytest.fixture
def rows():
    """Make the rows of an image with seven tokens and of one with four, with their scores."""
    tokens = make_tokens(make_pyramid(SHAPES, SHAPES, SHAPES))
    generator = torch.Generator().manual_seed(5)
    order = torch.stack([torch.randperm(26, generator=generator) for _ in range(2)])
    selection = TopKTokens.of(order[:, :7], torch.tensor([7, 4]), num_tokens=26)
    scores = torch.randn(2, 26, generator=generator, dtype=torch.float64)
    return selected_rows(tokens, selection, scores)


def plain(layer, content, rows, source, pyramid):
    """Run the part of the layer that follows the object attention."""
    return DeformableEncoderLayer.forward(layer, replace(rows, content=content), source, pyramid, None)


def attend_by_hand(layer, content, position):
    """Compute self-attention of (J, C) tokens head by head, with residual and normalisation."""
    weight, bias = layer.object_attn.in_proj_weight, layer.object_attn.in_proj_bias
    queries = content + position
    query, key = (queries @ weight[i : i + 32].T + bias[i : i + 32] for i in (0, 32))
    value = content @ weight[64:].T + bias[64:]
    heads = [
        (query[:, h : h + 8] @ key[:, h : h + 8].T / 8**0.5).softmax(-1) @ value[:, h : h + 8] for h in (0, 8, 16, 24)
    ]
    return layer.object_attn_norm(content + layer.object_attn.out_proj(torch.cat(heads, -1)))


@pytest.mark.parametrize("masked", [False, True])
def test_object_tokens_attend_in_eval_mode_as_in_training(masked):
    torch.manual_seed(0)
    attention = ObjectAttention(32, 4, batch_first=True).double()
    nn.init.normal_(attention.in_proj_bias)
    content, position = torch.randn(2, 3, 7, 32, dtype=torch.float64)
    valid = torch.arange(7).expand(3, 7) < torch.tensor([[7], [5], [1]]) if masked else None
    trained = attention(content, position, valid)
    assert_close(attention.eval()(content, position, valid), trained)


@pytest.mark.parametrize("object_score", ["probability_product", "logit_product"])
def test_the_best_products_of_token_score_and_class_attend_to_each_other(rows, head, object_score):
    layer, source = make_layer(object_score=object_score), make_tokens(make_pyramid(SHAPES, SHAPES, SHAPES)).content
    pyramid, content = make_pyramid(SHAPES, SHAPES, SHAPES), rows.content.clone()
    for image, count in enumerate((7, 4)):
        best = torch.stack([head.class_embed(token).max() for token in rows.content[image, :count]])
        score = rows.scores[image, :count]
        product = score * best if object_score == "logit_product" else score.sigmoid() * best.sigmoid()
        chosen = product.argsort(descending=True)[:3]
        content[image, chosen] = attend_by_hand(layer, content[image, chosen], rows.position[image, chosen])
    assert_close(layer(rows, source, pyramid, proposed(head)), plain(layer, content, rows, source, pyramid))


def test_raw_logits_put_the_least_likely_tokens_first():
    """Two negative factors have a positive product, which is why the exact form multiplies probabilities."""
    layer, head = make_layer(num_objects=1), PredictionHead(embed_dim=32, num_classes=2).double()
    nn.init.zeros_(head.class_embed.weight)
    nn.init.constant_(head.class_embed.bias, -4.6)
    tokens, order = make_tokens(make_pyramid(SHAPES)), torch.arange(26)[None]
    selection = TopKTokens.of(order, torch.tensor([26]), num_tokens=26)
    some = selected_rows(tokens, selection, torch.linspace(3, -3, 26, dtype=torch.float64)[None])
    assert layer.object_tokens(some, proposed(head)).tolist() == [[0]]
    layer.object_score = "logit_product"
    assert layer.object_tokens(some, proposed(head)).tolist() == [[25]]


def test_no_token_attends_to_surplus_rows_and_they_are_no_object_tokens(rows, head):
    """They do not take the place of a token either: the second image has four tokens, and six places."""
    layer, pyramid = make_layer(num_objects=6), make_pyramid(SHAPES, SHAPES, SHAPES)
    source, surplus = make_tokens(pyramid).content, ~rows.valid
    expected = layer(rows, source, pyramid, proposed(head))
    changed = replace(
        rows, content=torch.where(surplus[..., None], 1e3, rows.content), scores=rows.scores.masked_fill(surplus, 1e6)
    )
    assert_close(layer(changed, source, pyramid, proposed(head))[rows.valid], expected[rows.valid])
    alone = replace(rows, **{name: getattr(rows, name)[1:, :4] for name in ("content", "position", "reference_points")})
    alone = replace(alone, valid=rows.valid[1:, :4], scores=rows.scores[1:, :4])
    assert_close(layer(alone, source[1:], make_pyramid(SHAPES), proposed(head))[0], expected[1, :4])


def test_padding_that_is_excluded_from_the_ranking_is_no_object_token(head):
    """Minus infinity times a negative logit would be the highest score."""
    layer = make_layer(object_score="logit_product", surplus="attended")
    with torch.no_grad():
        head.class_embed.bias.fill_(-50.0)
    tokens = make_tokens(make_pyramid(SHAPES))
    selection = TopKTokens.of(torch.arange(26)[None], torch.tensor([20]), num_tokens=26)
    scores = torch.randn(1, 26, dtype=torch.float64).masked_fill(torch.arange(26) >= 20, float("-inf"))
    assert (layer.object_tokens(selected_rows(tokens, selection, scores), proposed(head)) < 20).all()


def test_released_surplus_rows_may_be_object_tokens(rows, head):
    layer, pyramid = make_layer(num_objects=6, surplus="attended"), make_pyramid(SHAPES, SHAPES, SHAPES)
    source = make_tokens(pyramid).content
    expected = layer(rows, source, pyramid, proposed(head))
    other = replace(rows, scores=rows.scores.masked_fill(~rows.valid, 1e6))
    assert not torch.allclose(layer(other, source, pyramid, proposed(head))[1, :4], expected[1, :4])


@pytest.mark.parametrize("num_objects", [7, 300])
def test_with_fewer_tokens_than_places_all_attend(rows, head, num_objects):
    layer = make_layer(num_objects=num_objects)
    assert layer.object_tokens(rows, proposed(head)).sort().values.tolist() == [list(range(7))] * 2


def test_the_choice_of_object_tokens_gives_no_gradient_to_scores_and_classes(rows, head):
    layer, pyramid = make_layer(), make_pyramid(SHAPES, SHAPES, SHAPES)
    scores = rows.scores.clone().requires_grad_()
    layer(replace(rows, scores=scores), make_tokens(pyramid).content, pyramid, proposed(head)).sum().backward()
    assert scores.grad is None
    assert all(parameter.grad is None for parameter in head.parameters())
    assert layer.object_attn.in_proj_weight.grad.any()


def test_a_model_without_scores_or_proposal_head_is_refused(rows, head):
    pyramid = make_pyramid(SHAPES, SHAPES, SHAPES)
    cases = [(rows, None, "no proposal head"), (replace(rows, scores=None), head, "this selector gives none")]
    for some, given, message in cases:
        with pytest.raises(ValueError, match=message):
            make_layer()(some, make_tokens(pyramid).content, pyramid, proposed(given))


def test_tokens_that_no_layer_selects_leave_an_encoder_unchanged(head):
    """Tokens that only the first layer selects are refined once."""
    layer = make_layer()
    encoder = DeformableEncoder(layers=[layer, copy.deepcopy(layer)])
    tokens, order = make_tokens(make_pyramid(SHAPES)), torch.randperm(26)[None]
    selection = CascadedTokens.nested(order, torch.tensor([[9], [4]]), (9, 4), num_tokens=26)
    scores = torch.randn(1, 26, dtype=torch.float64)
    output = encoder(tokens, selection, proposed(head), scores=scores)
    assert torch.equal(output.memory[~selection.keep], tokens.content[~selection.keep])
    assert torch.equal(output.memory[0, order[0, 4:9]], output.layers[0][0, 4:9])
    assert torch.equal(output.memory[0, order[0, :4]], output.layers[1][0])
