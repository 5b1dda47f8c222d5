"""The models that the recipes make, and the options that they pass on."""

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from sparse_detr.modeling.classification import SoftmaxNoObject
from sparse_detr.modeling.selection import KeepAllTokens, LevelBudget, ObjectnessScorer, RandomScorer, TopKSelector
from sparse_detr.recipes import (
    anchor_detr,
    deformable_detr,
    deformable_detr_topk,
    efficient_detr,
    imfa_dab_detr,
    mobilenet_v2,
    pnp_detr,
    resnet,
    sparse_detr,
    swin_tiny,
)
from sparse_detr.recipes.backbones import from_module
from sparse_detr.structures import AllTokens
from tests.modeling.tiny import MODELS, SIZES, make_pyramid, make_tokens, patch_backbone


def tiny(recipe, **options):
    return recipe(**{"backbone": patch_backbone(), **SIZES, **options})


def class_counts(model):
    return {m.class_embed.out_features for m in model.modules() if hasattr(m, "class_embed")}


@pytest.mark.parametrize("name", MODELS)
def test_the_number_of_classes_is_set_in_one_place_for_every_head(name):
    recipe, options = MODELS[name]
    config = tiny(recipe, **options)
    config.num_classes = 11
    model = instantiate(config)
    assert class_counts(model) == {model.criterion.classification.num_logits(11)}
    assert model.num_classes == 11


def test_a_keep_ratio_can_be_set_in_the_config():
    config = tiny(sparse_detr)
    config.selector.budget.keep_ratio, config.selector.inference_keep_ratio = 0.2, 0.6
    model = instantiate(config)
    assert (model.train().keep_ratio, model.eval().keep_ratio) == (0.2, 0.6)


def test_levels_can_have_shares_of_their_own():
    model = instantiate(tiny(sparse_detr, level_shares=(0.1, 0.5, 1.0, 1.0)))
    assert model.selector.budget == LevelBudget(shares=(0.1, 0.5, 1.0, 1.0), schedule=())
    with pytest.raises(ValueError, match="level_shares has 2 shares, but the model 4 levels; give one for every level"):
        tiny(sparse_detr, level_shares=(0.1, 1.0))


@pytest.mark.parametrize(
    ("scorer", "kind", "parameters"), [("objectness", ObjectnessScorer, True), ("random", RandomScorer, False)]
)
def test_scorers_of_the_ablation_are_chosen_by_name(scorer, kind, parameters):
    model = instantiate(tiny(sparse_detr, scorer=scorer))
    assert isinstance(model.selector.scorer, kind)
    assert bool(list(model.selector.parameters())) == parameters
    assert not model.supervision.needs_attention_map


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="scorer must be attention_map, objectness or random, got 'oracle'"):
        tiny(sparse_detr, scorer="oracle")
    with pytest.raises(TypeError, match="keep_rate"):
        tiny(sparse_detr, keep_rate=0.3)
    with pytest.raises(ValueError, match="keep_ratio must be above 0"):
        instantiate(tiny(sparse_detr, keep_ratio=0))


@pytest.mark.parametrize("recipe", [deformable_detr, sparse_detr])
@pytest.mark.parametrize(("option", "value"), [("behavior", "official"), ("two_stage", "on"), ("two_stage", False)])
def test_a_misspelt_choice_is_refused_by_name(recipe, option, value):
    """`off` without quotes is False in yaml, which would switch two-stage queries on if it were accepted."""
    with pytest.raises(ValueError, match=f"{option} must be .* got {value!r}"):
        tiny(recipe, **{option: value})


def test_released_and_exact_differ_in_every_part_that_reads_padding():
    exact, released = (tiny(sparse_detr, behavior=behavior) for behavior in ("exact", "released"))
    choices = [
        (c.tokenizer.padding, c.proposals.border, c.selector.padding, c.selector.scorer.network.mean_over)
        + (c.attention_map.alignment, c.supervision.padding, c.supervise_surplus_rows)
        for c in (exact, released)
    ]
    assert choices[0] == ("exact", "clamped", "excluded", "real", "exact", "ignored", False)
    assert choices[1] == ("released", "dropped", "lowest", "all", "released", "negative", True)


def test_dense_recipes_keep_every_token_and_sparse_ones_do_not():
    assert isinstance(instantiate(tiny(deformable_detr_topk)).selector, KeepAllTokens)
    assert isinstance(instantiate(tiny(sparse_detr)).selector, TopKSelector)


def test_heads_are_tied_without_refinement_only():
    tied, own = (instantiate(tiny(deformable_detr, box_refinement=refined)) for refined in (False, True))
    assert tied.decoder_heads[0] is tied.decoder_heads[1]
    assert own.decoder_heads[0] is not own.decoder_heads[1]
    assert "decoder_heads.1.class_embed.weight" in tied.state_dict()


def test_layers_are_independent_copies_with_equal_initial_weights():
    model = instantiate(tiny(deformable_detr))
    first, second = model.encoder.layers[:2]
    assert first.self_attn.value_proj.weight is not second.self_attn.value_proj.weight
    assert torch.equal(first.ffn.linear1.bias, second.ffn.linear1.bias)
    assert not torch.equal(first.ffn.linear1.weight, second.ffn.linear1.weight)
    assert first.self_attn.sampling_offsets.bias.any()
    assert not first.self_attn.sampling_offsets.weight.any()


def test_the_number_of_layers_is_that_of_the_options_and_may_be_zero():
    for count in (0, 1, 4):
        assert len(instantiate(tiny(sparse_detr, encoder_layers=count)).encoder.layers) == count


def test_without_encoder_layers_the_memory_is_the_tokens():
    model = instantiate(tiny(deformable_detr, encoder_layers=0))
    tokens = make_tokens(make_pyramid(((4, 5), (2, 3))), 64)
    assert model.encoder(tokens, AllTokens(tokens.pyramid), None).memory is tokens.content


@pytest.mark.parametrize(
    ("scorer", "two_stage", "projected"),
    [("random", "off", False), ("random", "memory", True), ("attention_map", "off", True), ("objectness", "off", True)],
)
def test_tokens_are_projected_only_if_a_part_reads_the_projection(scorer, two_stage, projected):
    """A projection that nothing reads gets no gradient, which makes data-parallel training fail."""
    model = instantiate(tiny(sparse_detr, scorer=scorer, two_stage=two_stage))
    assert (model.projection is not None) == projected


def test_transformer_matrices_start_xavier_uniform():
    model = instantiate(tiny(sparse_detr, embed_dim=128))
    attention = model.decoder.layers[0].self_attn
    for weight in (attention.in_proj_weight, attention.out_proj.weight, model.projection.linear.weight):
        bound = (6 / sum(weight.shape)) ** 0.5
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


BACKBONES = {
    "resnet50": resnet(50),
    "resnet101": resnet(101),
    "single_scale": resnet(50, num_maps=1),
    "dilated": resnet(50, dilation=True),
    "mobilenet": mobilenet_v2(),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_description_of_a_backbone_is_that_of_its_maps(name):
    with torch.device("meta"):
        module = instantiate(BACKBONES[name].config)
    assert from_module(module)[1:4] == BACKBONES[name][1:4]


def test_maps_have_the_described_strides_and_channels():
    for backbone in (resnet(50, dilation=True), swin_tiny(), mobilenet_v2()):
        with torch.no_grad():
            maps = instantiate(backbone.config).eval()(torch.zeros(1, 3, 70, 97))
        for name, channels, stride in zip(*backbone[1:4], strict=True):
            assert maps[name].shape == (1, channels, -(-70 // stride), -(-97 // stride))


def test_early_stages_are_frozen_and_batch_norm_everywhere():
    with torch.device("meta"):
        model = instantiate(deformable_detr(backbone=resnet(50)))
    frozen = {name for name, p in model.backbone.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"stem", "res2"}
    assert not [name for name, _ in model.backbone.named_parameters() if "norm" in name]


ONE_MAP = {"backbone": mobilenet_v2(strides=(32,)), "embed_dim": 32, "feedforward_dim": 16}
REFUSED = [
    (lambda: anchor_detr(num_patterns=0, **ONE_MAP), "num_patterns must be at least 1, got 0"),
    (lambda: pnp_detr(num_pooled=0, **ONE_MAP), "num_pooled must be at least 1, got 0"),
    (lambda: pnp_detr(training_keep_ratios=(0.1, 0.2, 0.3)), "training_keep_ratios must be the two ends of a range"),
    (lambda: pnp_detr(training_keep_ratios=(0.8, 0.2), **ONE_MAP), "from 0.8 to 0.2; give the smaller end first"),
    (lambda: imfa_dab_detr(sampling_share=1.5), "sampling_share must be above 0 and at most 1, got 1.5"),
    (lambda: tiny(efficient_detr, num_queries=500), "from 300 to 500; give a larger first number .first_num_queries"),
    (lambda: mobilenet_v2(strides=(7,)), "MobileNetV2 has no stride7; choose of stride2, stride4"),
    (lambda: L(SoftmaxNoObject)(no_object_weight=0.0), "no_object_weight must be above 0, got 0"),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words.split()[0] for _, words in REFUSED])
def test_an_option_that_cannot_be_is_refused_with_its_value(make, words):
    with pytest.raises(ValueError, match=words):
        instantiate(make())
