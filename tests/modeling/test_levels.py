"""Lite DETR: which levels every encoder layer refines, and the feed-forward network of fine levels."""

import pytest
import torch
from detectron2.config import instantiate
from torch.testing import assert_close

from sparse_detr.layers import FeedForward, MultiScaleDeformableAttention
from sparse_detr.modeling.encoder import DeformableEncoder, DeformableEncoderLayer, LevelFeedForwardLayer, level_layers
from sparse_detr.modeling.encoder.deformable import selected_rows
from sparse_detr.modeling.selection import EvenBudget, LevelSelector
from sparse_detr.recipes import dino, lite, lite_deformable_detr, lite_dino, sparse_detr
from sparse_detr.structures import AllTokens, CoarseTokens, full_layers
from tests.modeling.tiny import SIZES, build, make_pyramid, make_tokens, patch_backbone, picture, shake

SHAPES = ((4, 5), (2, 3), (1, 2))
PADDED = (SHAPES, ((2, 3), (1, 2), (1, 1)))
BATCH = [picture(64, 96), picture(96, 64, boxes=((0.2, 0.2, 0.6, 0.6),))]


@pytest.mark.parametrize(
    ("blocks", "full"), [(1, {5}), (2, {2, 5}), (3, {1, 3, 5}), (6, {0, 1, 2, 3, 4, 5})], ids=lambda value: str(value)
)
def test_the_last_layer_of_every_block_refines_all_tokens(blocks, full):
    """The table of the paper's configurations (6+1)x1, (3+1)x2 and (2+1)x3."""
    assert {layer for layer, is_full in enumerate(full_layers(num_layers=6, blocks=blocks)) if is_full} == full


@pytest.mark.parametrize(("high_levels", "start"), [(1, 26), (2, 20)])
def test_other_layers_refine_the_tokens_of_the_coarse_levels(high_levels, start):
    tokens = make_tokens(make_pyramid(SHAPES, *PADDED))
    selector = LevelSelector(num_levels=3, num_layers=4, high_levels=high_levels, blocks=2)
    selection = selector(tokens, None).selection
    assert isinstance(selection, CoarseTokens)
    assert selection.indices.tolist() == [list(range(start, 28))] * 2
    kinds = [isinstance(selection.at_layer(layer), AllTokens) for layer in range(4)]
    assert kinds == [False, True, False, True]
    valid = ~tokens.pyramid.padding_mask
    assert torch.equal(selection.keep, valid & (torch.arange(28) >= start))
    assert torch.equal(selection.valid, valid[:, start:])
    assert selection.counts.tolist() == valid[:, start:].sum(1).tolist()
    rows = selection.gather(tokens.content)
    assert torch.equal(rows, tokens.content[:, start:])
    written = selection.scatter(tokens.content, rows + 1)
    assert torch.equal(written[:, :start], tokens.content[:, :start])
    assert torch.equal(written[:, start:], rows + 1)


@pytest.mark.parametrize(("high_levels", "blocks"), [(3, 2), (1, 4)])
def test_all_levels_or_as_many_blocks_as_layers_refine_all_tokens(high_levels, blocks):
    selector = LevelSelector(num_levels=3, num_layers=4, high_levels=high_levels, blocks=blocks)
    assert isinstance(selector(make_tokens(make_pyramid(SHAPES)), None).selection, AllTokens)
    assert selector.mean_keep_ratio == 1


def test_the_share_is_about_that_of_the_tokens_of_a_large_image():
    """An image of 800 x 1333 pixels has 16700 + 4200 + 1050 + 273 tokens."""
    for high_levels, tokens in ((3, 4200 + 1050 + 273), (2, 1050 + 273)):
        selector = LevelSelector(num_levels=4, num_layers=6, high_levels=high_levels, blocks=3)
        assert selector.keep_ratio == pytest.approx(tokens / 22223, abs=0.003)
        assert selector.mean_keep_ratio == pytest.approx((1 + tokens / 22223) / 2, abs=0.002)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"high_levels": 0}, "high_levels must be 1 or more, at most the 3 levels, got 0"),
        ({"high_levels": 4}, "high_levels must be 1 or more, at most the 3 levels, got 4"),
        ({"blocks": 4}, "blocks must divide the 6 encoder layers, got 4"),
        ({"blocks": 0}, "blocks must divide the 6 encoder layers, got 0"),
    ],
)
def test_levels_and_blocks_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LevelSelector(**{"num_levels": 3, "num_layers": 6, "high_levels": 2, "blocks": 3, **options})


@pytest.mark.parametrize("budget", [0.3, 1.0, EvenBudget(keep_ratio=0.3)])
def test_a_budget_is_refused(budget):
    selector = LevelSelector(num_levels=3, num_layers=4, high_levels=1, blocks=2)
    with pytest.raises(ValueError, match="no share of tokens to choose; leave the budget out, and set high_levels"):
        selector(make_tokens(make_pyramid(SHAPES)), None, budget)


def make_layers(count=4, blocks=2):
    torch.manual_seed(0)
    parts = {
        "self_attn": MultiScaleDeformableAttention(embed_dim=32, num_heads=4, num_levels=3, num_points=2),
        "ffn": FeedForward(embed_dim=32, feedforward_dim=48, dropout=0.0),
        "embed_dim": 32,
        "dropout": 0.0,
    }
    narrow = FeedForward(embed_dim=32, feedforward_dim=32, dropout=0.0)
    layers = level_layers(
        module=DeformableEncoderLayer(**parts),
        full=LevelFeedForwardLayer(fine_ffn=narrow, high_levels=2, **parts),
        count=count,
        blocks=blocks,
    )
    for layer in layers:
        shake(layer.double())
    return layers


def test_an_encoder_of_another_number_of_layers_is_refused():
    tokens = make_tokens(make_pyramid(SHAPES))
    selection = LevelSelector(num_levels=3, num_layers=6, high_levels=2, blocks=2)(tokens, None).selection
    with pytest.raises(ValueError, match="for 6 encoder layers, but the encoder has 4; give both the same number"):
        DeformableEncoder(layers=make_layers())(tokens, selection, None)


def test_fine_tokens_do_not_change_before_the_first_full_layer_nor_between_two():
    layers = make_layers(count=3, blocks=1)
    tokens = make_tokens(make_pyramid(SHAPES, *PADDED))
    selection = LevelSelector(num_levels=3, num_layers=3, high_levels=2, blocks=1)(tokens, None).selection
    read = []
    for layer in layers:
        layer.self_attn.register_forward_pre_hook(lambda module, arguments: read.append(arguments[2]))
    memory = DeformableEncoder(layers=layers)(tokens, selection, None).memory
    read.append(memory)
    assert [torch.equal(x[:, :20], tokens.content[:, :20]) for x in read] == [True, True, True, False]
    changes = [not torch.isclose(a[:, 20:], b[:, 20:]).any() for a, b in zip(read[:-1], read[1:], strict=True)]
    assert changes == [True, True, True]


def test_the_encoder_equals_a_loop_in_the_order_of_the_paper():
    layers, tokens = make_layers(), make_tokens(make_pyramid(SHAPES, *PADDED))
    pyramid = tokens.pyramid
    selector = LevelSelector(num_levels=3, num_layers=4, high_levels=2, blocks=2)
    found = DeformableEncoder(layers=layers)(tokens, selector(tokens, None).selection, None).memory
    everything = selected_rows(tokens, AllTokens(pyramid), None)
    x = tokens.content
    for layer, start in zip(layers, (20, 0, 20, 0), strict=True):
        q, p, reference = x[:, start:], tokens.position[:, start:], everything.reference_points[:, start:]
        t = layer.self_attn_norm(q + layer.self_attn(q + p, reference, x, pyramid))
        wide = layer.ffn_norm(t + layer.ffn(t))
        if start == 0:
            narrow = layer.fine_ffn_norm(t + layer.fine_ffn(t))
            wide = torch.cat([narrow[:, :20], wide[:, 20:]], 1)
        x = torch.cat([x[:, :start], wide], 1)
    assert_close(found, x, atol=1e-12, rtol=0)


def test_only_full_layers_have_a_narrow_network_and_it_learns():
    model = build("lite_dino")
    sum(model.losses(BATCH).values()).backward()
    norms = {name for name, p in model.named_parameters() if "fine_ffn_norm" in name and p.grad.any()}
    assert norms == {f"encoder.layers.2.fine_ffn_norm.{kind}" for kind in ("weight", "bias")}


@pytest.mark.parametrize("behavior", ["exact", "released"])
@pytest.mark.parametrize("options", [{"high_levels": 4, "blocks": 1}, {"high_levels": 2, "blocks": 3}])
def test_with_all_levels_or_blocks_and_plain_parts_it_is_the_dense_model(options, behavior):
    common = {"backbone": patch_backbone(), "behavior": behavior, "denoising_queries": 0, **SIZES}
    dense = instantiate(dino(**common)).double()
    shake(dense)
    model = instantiate(lite_dino(key_aware="off", narrow_ffn=False, **options, **common)).double()
    model.load_state_dict(dense.state_dict())
    ours, expected = model.losses(BATCH), dense.losses(BATCH)
    assert {name: loss.item() for name, loss in ours.items()} == {name: loss.item() for name, loss in expected.items()}


def test_encoder_heads_learn_from_the_tokens_that_their_layer_refined():
    output = build("lite").outputs(BATCH)
    rows = {group.name: group.logits.shape[1] for group in output.groups if group.name.startswith("encoder_")}
    coarse = output.pyramid.level_sizes[-1]
    assert rows == {"encoder_0": coarse, "encoder_1": coarse}


def test_a_model_that_is_not_dense_is_refused():
    with pytest.raises(ValueError, match="needs a dense deformable encoder; use dino or deformable_detr as the base"):
        lite(sparse_detr())


@pytest.mark.parametrize(
    ("key_aware", "expected"), [("off", (False, False)), ("encoder", (True, False)), ("everywhere", (True, True))]
)
def test_attention_is_key_aware_where_the_option_says(key_aware, expected):
    model = lite_deformable_detr(key_aware=key_aware)
    encoder, decoder = model.encoder.layers.module.self_attn, model.decoder.layers.module.cross_attn
    assert tuple(part._target_.__name__ == "KeyAwareDeformableAttention" for part in (encoder, decoder)) == expected
    assert model.encoder.layers.full.self_attn._target_ is encoder._target_


@pytest.mark.parametrize("key_aware", [True, False, "decoder"])
def test_other_places_of_key_aware_attention_are_refused(key_aware):
    with pytest.raises(ValueError, match="key_aware must be one of off, encoder, everywhere"):
        lite_dino(key_aware=key_aware)
