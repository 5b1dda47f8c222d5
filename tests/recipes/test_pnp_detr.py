"""The recipe of PnP-DETR: pooled tokens, shares in training and at inference, and what released weights need."""

from argparse import Namespace

import pytest
from detectron2.config import instantiate

from sparse_detr.checkpoint import convert_checkpoint
from sparse_detr.recipes import mobilenet_v2, pnp_detr, resnet
from tests.checkpoint.test_layouts import file_of

SMALL = {"embed_dim": 32, "encoder_layers": 1, "decoder_layers": 1, "feedforward_dim": 16, "num_classes": 3}


def small(**options):
    return instantiate(pnp_detr(**{"backbone": mobilenet_v2(strides=(32,)), **SMALL, **options}))


@pytest.mark.parametrize(("dilation", "count"), [(False, 30), (True, 100)])
def test_a_dilated_backbone_has_more_pooled_tokens(dilation, count):
    assert pnp_detr(backbone=resnet(50, num_maps=1, dilation=dilation)).selector.pool.num_pooled == count


def test_the_share_is_random_in_training_and_fixed_at_inference():
    selector = small().selector
    assert (selector.budget.min_keep_ratio, selector.budget.max_keep_ratio) == (1 / 3, 0.8)
    assert selector.eval().keep_ratio == 1 / 3
    selector = small(keep_ratio=0.5, training_keep_ratios=(0.6, 0.6)).selector
    assert selector.keep_ratio == 0.6
    assert selector.eval().keep_ratio == selector.mean_keep_ratio == 0.5


@pytest.mark.parametrize(("behavior", "rows"), [("exact", "valid"), ("released", "all")])
def test_the_behavior_says_which_rows_the_penalty_counts(behavior, rows):
    model = small(behavior=behavior)
    assert (model.supervision.rows, model.supervision.weight) == (rows, 1e-4)


@pytest.mark.parametrize(("behavior", "precision"), [("exact", "double"), ("released", "single")])
def test_the_behavior_says_how_the_share_of_the_tokens_is_rounded(behavior, precision):
    assert small(behavior=behavior).selector.inference_budget.precision == precision


def test_the_converter_names_the_share_that_the_weights_were_trained_for():
    detrex = convert_checkpoint(file_of("detrex_pnp_detr_r50")).description.arguments
    assert (detrex["origin"], detrex["keep_ratio"], detrex["training_keep_ratios"]) == ("detrex", 0.5, (0.5, 0.5))
    file = {"model": file_of("official_pnp_detr"), "args": Namespace(sample_topk_ratio=0.65)}
    official = convert_checkpoint(file).description.arguments
    assert (official["keep_ratio"], official["num_pooled"], official["num_classes"]) == (0.65, 30, 91)
    assert "origin" not in official
    assert "keep_ratio" not in convert_checkpoint(file["model"]).description.arguments
