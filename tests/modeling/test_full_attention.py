"""Full attention: against the formulas written out for one image, by hand, and with padding."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sparse_detr.layers import MLP, FeedForward, SelfAttention, attention_mask, inverse_sigmoid
from sparse_detr.modeling.decoder.conditional import (
    ConditionalCrossAttention,
    ConditionalSelfAttention,
    conditional_layers,
)
from sparse_detr.modeling.decoder.deformable import QueryPosition
from sparse_detr.modeling.decoder.query_position import ContentScale, LayerScale, ModulatedBoxPosition
from sparse_detr.modeling.encoder.full import FullAttentionEncoder, FullAttentionEncoderLayer
from sparse_detr.structures import AllTokens, Queries, TopKTokens
from tests.modeling.tiny import SIZES, build, make_pyramid, make_tokens, picture, shake

HEADS, DIM = 4, 32
PADDED = make_pyramid(((3, 4),), ((3, 4),), ((2, 3),))
IMAGES = [picture(96, 64), picture(70, 125, boxes=((0.1, 0.1, 0.3, 0.9),))]


class Formulas:
    """The transformer of the model for one image, from the formulas of the paper and its supplement, head by head.

    Args:
        weights: parameters of the model, by name.
        heads: number of heads.
    """

    def __init__(self, weights, heads):
        self.weights, self.heads = weights, heads

    def linear(self, name, x):
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def mlp(self, name, x):
        count = len([key for key in self.weights if key.startswith(f"{name}.layers.") and key.endswith("weight")])
        for i in range(count):
            x = self.linear(f"{name}.layers.{i}", x)
            x = x.clamp(min=0) if i < count - 1 else x
        return x

    def norm(self, name, x):
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def ffn(self, name, x):
        hidden = self.linear(f"{name}.ffn.linear1", x)
        hidden = torch.where(hidden > 0, hidden, self.weights[f"{name}.ffn.activation.weight"] * hidden)
        return self.norm(f"{name}.ffn_norm", x + self.linear(f"{name}.ffn.linear2", hidden))

    def attend(self, *pairs, value):
        """Attend by the sum of the products of (query, key) `pairs`, in every head; the scale counts all channels."""
        results = []
        for head in range(self.heads):
            parts = [[x.chunk(self.heads, -1)[head] for x in pair] for pair in pairs]
            width = sum(query.shape[-1] for query, _ in parts)
            similarity = sum(query @ key.T for query, key in parts) / math.sqrt(width)
            results.append(similarity.softmax(-1) @ value.chunk(self.heads, -1)[head])
        return torch.cat(results, -1)

    def encode(self, x, position, layers):
        for layer in (f"encoder.layers.{i}" for i in range(layers)):
            query_or_key = x + position * self.mlp("encoder.position_scale", x)
            weights = self.weights[f"{layer}.self_attn.in_proj_weight"].chunk(3)
            biases = self.weights[f"{layer}.self_attn.in_proj_bias"].chunk(3)
            sources = (query_or_key, query_or_key, x)
            query, key, value = (y @ w.T + b for y, w, b in zip(sources, weights, biases, strict=True))
            attended = self.linear(f"{layer}.self_attn.out_proj", self.attend((query, key), value=value))
            x = self.ffn(layer, self.norm(f"{layer}.self_attn_norm", x + attended))
        return x

    @staticmethod
    def sine(coordinate, channels):
        exponents = torch.arange(0, channels, 2, dtype=coordinate.dtype) / channels
        angles = 2 * math.pi * coordinate[:, None] / 10_000**exponents
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)

    def position(self, anchors, content, i):
        """Return position and spatial query of layer i."""
        channels = content.shape[-1] // 2
        cx, cy, width, height = anchors.unbind(-1)
        content_width, content_height = self.mlp("decoder.query_position.size", content).sigmoid().unbind(-1)
        rows = self.sine(cy, channels) * (content_height / height)[:, None]
        columns = self.sine(cx, channels) * (content_width / width)[:, None]
        spatial = torch.cat([rows, columns], -1)
        if i > 0:
            spatial = spatial * self.mlp("decoder.query_position.scale", content)
        box = torch.cat([self.sine(x, channels) for x in (cy, cx, width, height)], -1)
        return self.mlp("decoder.query_position.mlp", box), spatial

    def decode_layer(self, i, x, query_position, memory, memory_position):
        position, spatial = query_position
        own, cross = f"decoder.layers.{i}.self_attn.", f"decoder.layers.{i}.cross_attn."
        query = self.linear(own + "query_content_proj", x) + self.linear(own + "query_pos_proj", position)
        key = self.linear(own + "key_content_proj", x) + self.linear(own + "key_pos_proj", position)
        attended = self.attend((query, key), value=self.linear(own + "value_proj", x))
        x = self.norm(f"decoder.layers.{i}.self_attn_norm", x + self.linear(own + "out_proj", attended))
        query, key = self.linear(cross + "query_content_proj", x), self.linear(cross + "key_content_proj", memory)
        spatial_key = self.linear(cross + "key_pos_proj", memory_position)
        if i == 0:
            query, key = query + self.linear(cross + "query_pos_proj", position), key + spatial_key
        spatial_pair = (self.linear(cross + "query_spatial_proj", spatial), spatial_key)
        attended = self.attend((query, key), spatial_pair, value=self.linear(cross + "value_proj", memory))
        x = self.norm(f"decoder.layers.{i}.cross_attn_norm", x + self.linear(cross + "out_proj", attended))
        return self.ffn(f"decoder.layers.{i}", x)

    def decode(self, memory, memory_position, layers):
        """Return (logits, boxes) of every layer."""
        anchors = self.weights["queries.anchors.logits"].sigmoid()
        x, kept, results = torch.zeros(len(anchors), memory.shape[-1], dtype=memory.dtype), anchors, []
        for i in range(layers):
            x = self.decode_layer(i, x, self.position(anchors, x, i), memory, memory_position)
            normed = self.norm("decoder.norm", x)
            boxes = self.mlp("decoder_heads.0.box_embed", normed) + inverse_sigmoid(kept, 1e-3)
            results.append((self.linear("decoder_heads.0.class_embed", normed), boxes.sigmoid()))
            kept = (self.mlp("decoder_heads.0.box_embed", x) + inverse_sigmoid(anchors, 1e-3)).sigmoid()
            anchors = kept.detach()
        return results


def full_attention_run(model):
    """Return the output for a padded batch, and (logits, boxes) of every image and decoder layer from the formulas."""
    recorded = []
    hook = model.tokenizer.register_forward_hook(lambda _, __, tokens: recorded.append(tokens))
    output = model.outputs(IMAGES)
    hook.remove()
    formulas = Formulas(dict(model.named_parameters(remove_duplicate=False)), SIZES["num_heads"])
    (tokens,) = recorded
    expected = []
    for image, padding_mask in enumerate(tokens.pyramid.padding_mask):
        content, position = tokens.content[image][~padding_mask], tokens.position[image][~padding_mask]
        memory = formulas.encode(content, position, SIZES["encoder_layers"])
        expected.append(formulas.decode(memory, position, SIZES["decoder_layers"]))
    return output, expected


def test_every_layer_of_the_whole_model_follows_the_formulas_whatever_the_padding():
    output, expected = full_attention_run(build("dab"))
    assert output.pyramid.has_padding
    for layer, group in enumerate(output.groups):
        for image, results in enumerate(expected):
            logits, boxes = results[layer]
            assert_close(group.logits[image], logits, atol=1e-10, rtol=0)
            assert_close(group.boxes[image], boxes, atol=1e-10, rtol=0)


def test_gradients_of_the_whole_model_follow_the_formulas():
    """Anchors get gradients through sine, 1 / w, 1 / h and both sigmoids; later layers attend around detached boxes."""
    model = build("dab")
    output, expected = full_attention_run(model)
    parameters = [p for name, p in model.named_parameters() if not name.startswith("backbone")]
    loss = sum(group.logits.square().sum() + group.boxes.square().sum() for group in output.groups)
    other = sum(x.square().sum() for results in expected for layer in results for x in layer)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    for gradient, same in zip(gradients, torch.autograd.grad(other, parameters), strict=True):
        assert_close(gradient, same, atol=1e-8, rtol=1e-8)


def make_encoder(count=2):
    torch.manual_seed(0)
    layers = [
        FullAttentionEncoderLayer(
            self_attn=SelfAttention(embed_dim=DIM, num_heads=HEADS, dropout=0.0),
            ffn=FeedForward(embed_dim=DIM, feedforward_dim=48, dropout=0.0),
            embed_dim=DIM,
            dropout=0.0,
        )
        for _ in range(count)
    ]
    encoder = FullAttentionEncoder(layers=layers, position_scale=MLP(sizes=(DIM, DIM, DIM))).double()
    shake(encoder)
    return encoder


def test_the_encoder_returns_every_layer_and_its_memory_is_the_last():
    tokens = make_tokens(PADDED, DIM)
    output = make_encoder()(tokens, AllTokens(PADDED), None)
    assert [tuple(layer.shape) for layer in output.layers] == [(2, 12, DIM)] * 2
    assert output.memory is output.layers[-1]


def test_an_encoder_with_full_attention_refuses_to_leave_tokens_out():
    tokens = make_tokens(PADDED, DIM)
    some = TopKTokens.of(torch.zeros(2, 1, dtype=torch.long), torch.ones(2).long(), num_tokens=12)
    with pytest.raises(ValueError, match="full attention refines every token, but TopKTokens leaves some out"):
        make_encoder()(tokens, some, None)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def self_attention():
    torch.manual_seed(0)
    return ConditionalSelfAttention(embed_dim=DIM, num_heads=HEADS, dropout=0.0).double()


@pytest.mark.parametrize("kind", ["valid", "keep", "both"])
def test_queries_that_others_may_not_attend_to_do_not_change_them(kind):
    """Of five queries, the first three attend only to each other."""
    attention, content, position = self_attention(), random(2, 5, DIM), random(2, 5, DIM, seed=1)
    valid = torch.tensor([True, True, True, False, False]).expand(2, 5)
    keep = torch.ones(5, 5, dtype=torch.bool)
    keep[:3, 3:] = False
    mask = attention_mask(None if kind == "keep" else valid, None if kind == "valid" else keep)
    alone = attention(content[:, :3], position[:, :3], None)
    assert_close(attention(content, position, mask)[:, :3], alone)
    assert not torch.allclose(attention(content, position, None)[:, :3], alone)


def cross_attention(*, first=False, memory_padding="hidden"):
    torch.manual_seed(0)
    attention = ConditionalCrossAttention(
        embed_dim=DIM, num_heads=HEADS, dropout=0.0, first=first, memory_padding=memory_padding
    )
    return attention.double()


def make_query_position(count=5):
    return QueryPosition(
        position=random(2, count, DIM, seed=2),
        reference_points=torch.full((2, count, 4), 0.5, dtype=torch.float64),
        spatial=random(2, count, DIM, seed=3),
    )


@pytest.mark.parametrize(("memory_padding", "is_read"), [("hidden", False), ("visible", True)])
def test_queries_attend_to_padding_of_the_memory_only_if_it_is_visible(memory_padding, is_read):
    attention, tokens = cross_attention(memory_padding=memory_padding), make_tokens(PADDED, DIM)
    content = random(2, 5, DIM)
    before = attention(content, make_query_position(), tokens)
    tokens.content[tokens.pyramid.padding_mask] += 1
    changed = (attention(content, make_query_position(), tokens) - before).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, is_read]


def test_only_the_first_layer_adds_positions_to_the_contents_of_cross_attention():
    layers = conditional_layers(
        ffn=FeedForward(embed_dim=DIM, feedforward_dim=48, dropout=0.0, activation=torch.nn.PReLU()),
        embed_dim=DIM,
        num_heads=HEADS,
        dropout=0.0,
        count=3,
    )
    assert [layer.cross_attn.query_pos_proj is not None for layer in layers] == [True, False, False]
    slopes = [layer.ffn.activation.weight for layer in layers]
    assert all(slope.shape == (1,) for slope in slopes)
    assert len({id(slope) for slope in slopes}) == 3


@pytest.mark.parametrize("first", [True, False])
def test_without_content_only_the_first_layer_depends_on_the_position(first):
    attention, tokens = cross_attention(first=first), make_tokens(PADDED, DIM)
    here = make_query_position()
    elsewhere = replace(here, position=random(2, 5, DIM, seed=7))
    content = torch.zeros(2, 5, DIM, dtype=torch.float64)
    differs = not torch.allclose(attention(content, here, tokens), attention(content, elsewhere, tokens))
    assert differs == first


def test_a_layer_returns_no_samples():
    (layer,) = conditional_layers(
        ffn=FeedForward(embed_dim=DIM, feedforward_dim=48, dropout=0.0),
        embed_dim=DIM,
        num_heads=HEADS,
        dropout=0.0,
        count=1,
    )
    content, samples = layer.double()(
        random(2, 5, DIM), make_query_position(), make_tokens(PADDED, DIM), None, need_samples=True
    )
    assert content.shape == (2, 5, DIM)
    assert samples is None


def test_heads_must_divide_the_channels():
    for part in (ConditionalSelfAttention, lambda **sizes: ConditionalCrossAttention(**sizes, first=True)):
        with pytest.raises(ValueError, match="embed_dim 30 must be a multiple of num_heads 4"):
            part(embed_dim=30, num_heads=4, dropout=0.0)


def position_at(scale, *, layer, content=None, box=(0.25, 0.5, 0.1, 0.2)):
    """Return the position of one query of 8 channels at a box; the size network predicts half of height and width."""
    part = ModulatedBoxPosition(embed_dim=8, scale=scale).double()
    for parameter in part.size.parameters():
        torch.nn.init.zeros_(parameter)
    content = torch.zeros(1, 1, 8, dtype=torch.float64) if content is None else content
    boxes = torch.tensor([[box]], dtype=torch.float64)
    return part(Queries(content, None, boxes), boxes, content, PADDED, layer=layer)


def twos(*, width=8):
    """Return a `ContentScale` that always gives 2."""
    network = ContentScale(sizes=(8, 8, width)).double()
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    torch.nn.init.constant_(network.layers[-1].bias, 2.0)
    return network


# Centre (1/4, 1/2): sine and cosine of pi and pi / 100 for the row, of pi / 2 and pi / 200 for the column; (0.5, 0.5)
# over the box's (0.1, 0.2) is 5 for columns and 2.5 for rows.
SMALL = math.pi / 100
BY_HAND = torch.tensor(
    [0.0, -2.5, 2.5 * math.sin(SMALL), 2.5 * math.cos(SMALL)]
    + [5.0, 0.0, 5 * math.sin(SMALL / 2), 5 * math.cos(SMALL / 2)],
    dtype=torch.float64,
)


@pytest.mark.parametrize(
    ("scale", "layer", "factor"),
    [
        (twos(), 0, 1),
        (twos(), 1, 2),
        (twos(width=1), 1, 2),
        (LayerScale(num_layers=2, embed_dim=8), 1, 1),
    ],
    ids=["first_layer", "elementwise", "scalar", "fixed"],
)
def test_rows_are_scaled_by_heights_and_columns_by_widths(scale, layer, factor):
    assert_close(position_at(scale, layer=layer).spatial[0, 0], factor * BY_HAND, atol=1e-12, rtol=0)


def test_every_layer_has_its_own_fixed_factors():
    scale = LayerScale(num_layers=3, embed_dim=8).double()
    with torch.no_grad():
        scale.weight.copy_(torch.arange(24.0).view(3, 8))
    for layer in range(3):
        expected = scale.weight[layer] * BY_HAND
        assert_close(position_at(scale, layer=layer).spatial[0, 0], expected, atol=1e-12, rtol=0)


def test_without_a_scale_only_the_size_is_a_factor():
    for layer in range(2):
        assert_close(position_at(None, layer=layer).spatial[0, 0], BY_HAND, atol=1e-12, rtol=0)


def test_the_size_network_reads_the_content_in_the_first_layer_too():
    torch.manual_seed(0)
    part = ModulatedBoxPosition(embed_dim=8, scale=twos()).double()
    boxes = torch.full((1, 1, 4), 0.5, dtype=torch.float64)
    spatial = [
        part(Queries(content, None, boxes), boxes, content, PADDED, layer=0).spatial
        for content in (random(1, 1, 8), random(1, 1, 8, seed=1))
    ]
    assert not torch.allclose(*spatial)


def test_a_box_of_almost_no_size_gives_numbers_that_half_precision_can_hold():
    spatial = position_at(twos(), layer=0, box=(0.5, 0.5, 0.0, 1e-30)).spatial
    assert spatial.isfinite().all()
    assert spatial.abs().max() < torch.finfo(torch.float16).max


def test_queries_of_a_layer_attend_only_to_kept_queries():
    model = build("dab")
    layer = model.decoder.layers[1]
    content, tokens = random(2, 5, 64), make_tokens(PADDED, 64)
    position = QueryPosition(random(2, 5, 64, seed=2), torch.full((2, 5, 4), 0.5).double(), random(2, 5, 64, seed=3))
    keep = torch.ones(5, 5, dtype=torch.bool)
    keep[2:, :2] = False
    masked, _ = layer(content, position, tokens, attention_mask(None, keep))
    kept = QueryPosition(position.position[:, 2:], position.reference_points[:, 2:], position.spatial[:, 2:])
    alone, _ = layer(content[:, 2:], kept, tokens, None)
    assert_close(masked[:, 2:], alone)
