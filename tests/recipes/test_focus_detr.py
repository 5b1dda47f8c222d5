"""The models that the recipes of Focus-DETR make."""

import itertools

import pytest
from detectron2.config import instantiate

from sparse_detr.modeling.queries import LearnedQueries, TopKQueries
from sparse_detr.modeling.training.auxiliary_proposals import AuxiliaryProposals
from sparse_detr.recipes import dab_detr, deformable_detr_topk, dino, focus, focus_deformable_detr, focus_detr
from tests.modeling.tiny import SIZES, build, patch_backbone, picture


def tiny(recipe, **options):
    return recipe(**{"backbone": patch_backbone(), **SIZES, **options})


def test_released_and_exact_differ_in_every_part_in_which_the_paper_and_its_code_differ():
    exact, released = (tiny(focus_detr, behavior=behavior) for behavior in ("exact", "released"))
    choices = [
        (
            c.selector.padding,
            c.selector.budget._target_.split(".")[-1],
            c.selector.scorer.modulation,
            c.selector.scorer.network.mean_over,
        )
        + (c.encoder.source, c.encoder.layers.module.object_score, c.encoder.layers.module.surplus)
        + (c.supervision.labels.rule, c.supervision.normalization, c.supervision.padding)
        for c in (exact, released)
    ]
    assert choices[0] == (
        *("excluded", "CascadedBudget", "exact", "real"),
        *("updated", "probability_product", "masked"),
        *("chessboard", "batch", "ignored"),
    )
    assert choices[1] == (
        *("ranked_lowest", "BatchCascadedBudget", "released", "all"),
        *("static", "logit_product", "attended"),
        *("side", "image", "negative"),
    )
    assert exact.supervision.labels.strides is None
    assert list(released.supervision.labels.strides) == [8, 16, 32]


def test_the_first_layer_refines_half_of_the_tokens_and_a_layer_three_tenths_on_average():
    model = instantiate(focus_detr(backbone=patch_backbone()))
    assert (model.keep_ratio, model.mean_keep_ratio) == (0.5, pytest.approx(0.3))
    assert model.selector.budget.with_keep_ratio(0.25).mean_keep_ratio == pytest.approx(0.15)


def test_the_schedule_follows_the_number_of_layers_that_a_config_sets_later():
    config = tiny(focus_detr)
    config.encoder.layers.count = 11
    assert len(instantiate(config).selector.budget.schedule) == 11
    config.selector.budget.schedule.shares = [1.0, 0.5]
    with pytest.raises(ValueError, match="2 shares, and the encoder 11 layers"):
        instantiate(config)
    config.encoder.layers.count = 2
    assert instantiate(config).selector.budget.schedule == (1.0, 0.5)


@pytest.mark.parametrize("num_levels", [3, 4, 5])
def test_alphas_and_size_ranges_follow_the_number_of_levels(num_levels):
    model = build("focus", num_levels=num_levels)
    assert model.selector.scorer.alpha.shape == (num_levels - 1,)
    assert model.losses([picture(64, 96)])["loss_foreground"].isfinite()


def test_any_deformable_encoder_can_become_that_of_focus_detr():
    for base in (dino, deformable_detr_topk):
        model = instantiate(focus(tiny(base), keep_ratio=0.4, num_objects=7))
        assert model.keep_ratio == 0.4
        assert {layer.num_objects for layer in model.encoder.layers} == {7}


def test_an_encoder_with_full_attention_is_refused():
    with pytest.raises(ValueError, match="Focus-DETR needs a deformable encoder; use dino, "):
        focus(dab_detr(num_classes=5))


def test_any_two_options_of_padding_give_finite_losses():
    batch = [picture(97, 130), picture(40, 40)]
    for ranked, supervised in itertools.product(("excluded", "lowest", "ranked_lowest"), ("ignored", "negative")):
        config = tiny(focus_detr)
        config.selector.padding, config.supervision.padding = ranked, supervised
        assert all(loss.isfinite() for loss in instantiate(config).train()(batch).values())


def test_one_stage_models_get_a_proposal_head_and_keep_learned_queries():
    one = instantiate(tiny(focus_deformable_detr, two_stage="off", box_refinement=False))
    assert isinstance(one.auxiliary_proposals, AuxiliaryProposals)
    assert isinstance(one.queries, LearnedQueries)
    assert one.decoder_heads[0].box_embed.linears[-1].bias.tolist() == [0, 0, -2, -2]
    assert {"loss_class_enc", "loss_foreground"} <= set(one.train()([picture(64, 96)]))
    one.proposal_head.register_forward_hook(lambda *_: pytest.fail("inference must not run the auxiliary proposals"))
    one.eval()([picture(64, 96)])
    two = instantiate(tiny(focus_deformable_detr))
    assert isinstance(two.queries, TopKQueries)
    assert two.decoder_heads[0].box_embed.linears[-1].bias.tolist() == [0, 0, 0, 0]


def test_a_misspelt_behavior_is_refused_by_name():
    with pytest.raises(ValueError, match="behavior must be one of exact, released, got 'paper'"):
        focus(tiny(dino), behavior="paper")
