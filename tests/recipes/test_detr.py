"""The models that the recipes of DETR and Conditional DETR make."""

import pytest
import torch
from detectron2.config import instantiate

from sparse_detr.config import load_config
from sparse_detr.errors import UserError
from sparse_detr.model_zoo import get_config_file
from sparse_detr.modeling.classification import SigmoidFocal, SoftmaxNoObject
from sparse_detr.recipes import conditional_detr, detr, resnet
from tests.modeling.tiny import build, picture

BOTH = pytest.mark.parametrize("recipe", [detr, conditional_detr])


@pytest.mark.parametrize(
    ("recipe", "options", "everything", "trained"),
    [
        (detr, {"num_classes": 91}, 41_524_768, 41_302_368),
        (detr, {}, 41_521_941, None),
        (conditional_detr, {"num_classes": 91, "num_queries": 60}, 43_356_961, 43_134_561),
    ],
)
def test_the_models_have_as_many_parameters_as_the_public_ones(recipe, options, everything, trained):
    with torch.device("meta"):
        parameters = list(instantiate(recipe(**options)).parameters())
    assert sum(p.numel() for p in parameters) == everything
    assert trained in (None, sum(p.numel() for p in parameters if p.requires_grad))


def test_losses_and_costs_have_the_weights_of_the_papers():
    for recipe, weights, classification in (
        (detr, (1.0, 5.0, 2.0), SoftmaxNoObject(no_object_weight=0.1)),
        (conditional_detr, (2.0, 5.0, 2.0), SigmoidFocal()),
    ):
        criterion = instantiate(recipe().criterion)
        matcher = criterion.matcher
        assert tuple(criterion.weights.values()) == weights
        assert (matcher.class_weight, matcher.bbox_weight, matcher.giou_weight) == weights
        assert criterion.classification == matcher.classification == classification


def test_boxes_of_detr_start_anywhere_and_no_class_has_a_prior():
    head = build("detr", dtype=torch.float32).decoder_heads[0]
    assert head.box_start == "anywhere"
    free, prior = (build(name, embed_dim=256).decoder_heads[0].class_embed.bias for name in ("detr", "conditional"))
    assert free.mean() > -1
    assert prior.mean() < -4


@BOTH
def test_weights_of_detrex_were_trained_with_other_epsilons(recipe):
    exact, official, detrex = (
        recipe(behavior=behavior, origin=origin)
        for behavior, origin in (("exact", "detrex"), ("released", "official"), ("released", "detrex"))
    )
    for part in ("criterion", "decoder", "postprocess"):
        assert official[part] == exact[part]
    assert (exact.tokenizer.padding, official.tokenizer.padding) == ("exact", "released")
    assert detrex.criterion.iou_eps == detrex.criterion.matcher.iou_eps == 1e-6
    decoder = instantiate(detrex.decoder)
    if recipe is conditional_detr:
        assert decoder.logit_eps == 1e-3
        assert {layer.cross_attn.memory_padding for layer in decoder.layers} == {"visible"}


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"origin": "facebook"}, "origin must be one of official, detrex, got 'facebook'"),
        ({"activation": "gelu"}, "activation must be one of prelu, relu, got 'gelu'"),
        ({"backbone": resnet(50)}, "full attention reads one map, but the backbone gives res3, res4, res5"),
    ],
)
def test_wrong_options_are_refused_by_name(recipe, options, message):
    with pytest.raises(ValueError, match=message):
        recipe(**options)


@BOTH
def test_a_dilated_backbone_halves_the_stride(recipe):
    config = recipe(backbone=resnet(50, num_maps=1, dilation=True))
    assert (config.tokenizer.stride, recipe().tokenizer.stride) == (16, 32)


@pytest.mark.parametrize("name", ["detr", "conditional"])
def test_a_single_decoder_layer_leaves_no_parameter_without_a_gradient(name):
    """Factors of positions are used from the second layer on; without one, data-parallel training would hang."""
    model = build(name, decoder_layers=1)
    sum(model.losses([picture(64, 96)]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["detr", "conditional"])
def test_images_without_boxes_train(name):
    model = build(name)
    losses = model.losses([picture(64, 96, boxes=())] * 2)
    sum(losses.values()).backward()
    assert losses["loss_bbox"] == losses["loss_giou"] == 0
    assert losses["loss_class"] > 0


def test_the_number_of_detections_of_detr_is_that_of_its_queries():
    model = build("detr", num_queries=7).eval()
    (result,) = model([picture(64, 96)])
    assert len(result["instances"]) == 7
    with pytest.raises(UserError, match="DETECTIONS_PER_IMAGE is 50, but DETR gives one detection for each query"):
        load_config(get_config_file("DETR/detr_r50.yaml"), ["TEST.DETECTIONS_PER_IMAGE", "50"])
