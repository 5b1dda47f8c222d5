"""A yaml config and a lazy recipe with the same options make the same model."""

import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.modeling import build_model
from torch.testing import assert_close

from sparse_detr.config import add_detr_config
from sparse_detr.errors import UserError
from sparse_detr.recipes import (
    RECIPES,
    anchor_detr,
    conditional_detr,
    dab_deformable_detr,
    dab_detr,
    deformable_detr,
    detr,
    dino,
    efficient_detr,
    focus_deformable_detr,
    focus_detr,
    imfa_dab_detr,
    lite_deformable_detr,
    lite_dino,
    mobilenet_v2,
    pnp_detr,
    resnet,
    sparse_dab_deformable_detr,
    sparse_detr,
    sparse_dino,
)
from sparse_detr.recipes.meta_arch import recipe_options
from tests.modeling.tiny import NUM_CLASSES, SIZES, picture, shake

TWINS = {
    "one_stage": ("DeformableDETR", deformable_detr, {}),
    "two_stage": ("DeformableDETR", deformable_detr, {"box_refinement": True, "two_stage": "projected"}),
    "released": ("DeformableDETR", deformable_detr, {"behavior": "released", "num_detections": 7}),
    "sparse": ("SparseDETR", sparse_detr, {"keep_ratio": 0.2, "inference_keep_ratio": 0.4}),
    "levels": ("SparseDETR", sparse_detr, {"level_shares": [0.1, 0.5, 1.0, 1.0]}),
    "elastic": ("SparseDETR", sparse_detr, {"training_keep_ratios": [0.1, 1.0]}),
    "elastic_focus": (
        "FocusDETR",
        focus_detr,
        {"num_objects": 5, "training_keep_ratios": [0.2, 0.9], "distillation_weight": 2.0},
    ),
    "elastic_decoder": ("SparseDINO", sparse_dino, {"training_decoder_layers": [1, 2], "training_num_queries": [4, 9]}),
    "objectness": ("SparseDETR", sparse_detr, {"scorer": "objectness", "encoder_auxiliary_loss": False}),
    "more_logits": ("SparseDETR", sparse_detr, {"class_channels": [0, 2, 4]}),
    "efficient": ("EfficientDETR", efficient_detr, {"first_num_queries": 20, "falling_steps": 9, "share_heads": False}),
    "dino": ("DINO", dino, {"shared_heads": True, "denoising_queries": 6, "position_temperature": 10000.0}),
    "sparse_dino": ("SparseDINO", sparse_dino, {"keep_ratio": 0.2, "behavior": "released"}),
    "dab_deformable": ("DABDeformableDETR", dab_deformable_detr, {"num_patterns": 2, "freeze_centers": True}),
    "sparse_dab": ("SparseDABDeformableDETR", sparse_dab_deformable_detr, {"keep_ratio": 0.2}),
    "focus": ("FocusDETR", focus_detr, {"keep_ratio": 0.6, "num_objects": 5, "schedule": [1.0, 0.5, 0.1]}),
    "focus_deformable": ("FocusDeformableDETR", focus_deformable_detr, {"two_stage": "off"}),
    "lite_dino": ("LiteDINO", lite_dino, {"high_levels": 2, "blocks": 1, "behavior": "released"}),
    "lite_deformable": ("LiteDeformableDETR", lite_deformable_detr, {"blocks": 1, "key_aware": "off"}),
}
BATCH = [picture(64, 96, boxes=((0.1, 0.2, 0.5, 0.7),)), picture(64, 64, boxes=())]


def make_cfg(meta_architecture, **options):
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.BACKBONE.NAME = "build_mobilenet_v2_backbone"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375]
    cfg.MODEL.DEVICE = "cpu"
    for key, value in options.items():
        cfg.MODEL.DETR[key.upper()] = value
    return cfg


def seeded(builder):
    torch.manual_seed(3)
    model = builder()
    shake(model)
    return model


def seeded_losses(model):
    torch.manual_seed(4)  # for the noise of denoising queries
    return model.train().losses(BATCH)


def assert_same_model(first, second):
    """Check for the same names, shapes and values of weights, losses and detections."""
    assert list(first.state_dict()) == list(second.state_dict())
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key
    trainable = [{name for name, p in model.named_parameters() if p.requires_grad} for model in (first, second)]
    assert trainable[0] == trainable[1]
    losses, expected = (seeded_losses(model) for model in (first, second))
    assert {k: v.item() for k, v in losses.items()} == {k: v.item() for k, v in expected.items()}
    for result, other in zip(first.eval()(BATCH), second.eval()(BATCH), strict=True):
        assert_close(result["instances"].pred_boxes.tensor, other["instances"].pred_boxes.tensor)
        assert torch.equal(result["instances"].pred_classes, other["instances"].pred_classes)


@pytest.mark.parametrize("twin", TWINS)
def test_yaml_and_lazy_twins_agree_in_parameters_losses_and_detections(twin):
    meta_architecture, recipe, options = TWINS[twin]
    options = {**SIZES, **options}
    yaml = seeded(lambda: build_model(make_cfg(meta_architecture, **options)))
    lazy = seeded(lambda: instantiate(recipe(backbone=mobilenet_v2(), **options)))
    assert_same_model(yaml, lazy)


def test_a_resnet_from_the_keys_of_detectron2_is_that_of_the_recipe():
    cfg = make_cfg("DeformableDETR", **SIZES)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    yaml = build_model(cfg)
    lazy = instantiate(deformable_detr(backbone=resnet(50), **SIZES))
    shapes, expected = ({k: v.shape for k, v in model.state_dict().items()} for model in (yaml, lazy))
    assert shapes == expected
    lazy.load_state_dict(yaml.state_dict())
    with torch.no_grad():
        first, second = (model.eval().outputs(BATCH).predictions for model in (yaml, lazy))
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize(
    ("meta_architecture", "recipe", "options"),
    [
        ("AnchorDETR", anchor_detr, {"anchor_points": "grid", "num_queries": 9, "num_patterns": 2}),
        ("DABDETR", dab_detr, {"num_patterns": 2}),
        ("DETR", detr, {"behavior": "released", "origin": "detrex"}),
        ("PnPDETR", pnp_detr, {"keep_ratio": 0.4, "training_keep_ratios": [0.5, 0.9], "num_pooled": 7}),
        ("ConditionalDETR", conditional_detr, {"behavior": "released", "origin": "detrex", "num_detections": 7}),
    ],
)
def test_full_attention_from_yaml_is_the_recipe_on_the_last_map_of_a_resnet(meta_architecture, recipe, options):
    options = {name: value for name, value in SIZES.items() if name != "num_points"} | options
    cfg = make_cfg(meta_architecture, **options)
    cfg.MODEL.BACKBONE.NAME = "build_resnet_dc5_backbone"
    yaml = seeded(lambda: build_model(cfg))
    lazy = seeded(lambda: instantiate(recipe(backbone=resnet(50, num_maps=1, dilation=True), **options)))
    assert_same_model(yaml, lazy)


def test_imfa_from_yaml_is_the_recipe_on_all_maps():
    options = {name: value for name, value in SIZES.items() if name != "encoder_layers"} | {"sampling_share": 0.4}
    yaml = seeded(lambda: build_model(make_cfg("IMFADABDETR", **options)))
    lazy = seeded(lambda: instantiate(imfa_dab_detr(backbone=mobilenet_v2(), **options)))
    assert_same_model(yaml, lazy)


def test_keys_that_are_not_set_have_the_defaults_of_the_recipe():
    cfg = make_cfg("SparseDETR")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        yaml = build_model(cfg)
        lazy = instantiate(sparse_detr(backbone=mobilenet_v2()))
    shapes, expected = ({k: v.shape for k, v in model.state_dict().items()} for model in (yaml, lazy))
    assert shapes == expected
    assert yaml.keep_ratio == lazy.keep_ratio == 0.3
    assert yaml.num_classes == lazy.num_classes == 80


def test_a_key_that_the_architecture_does_not_have_is_refused_by_name():
    with pytest.raises(UserError, match=r"DeformableDETR has no option MODEL.DETR.KEEP_RATIO"):
        build_model(make_cfg("DeformableDETR", keep_ratio=0.3))


def test_every_option_of_every_recipe_has_a_key_that_is_none_by_default():
    cfg = make_cfg("SparseDETR")
    for name in RECIPES:
        for option in recipe_options(name):
            assert cfg.MODEL.DETR[option.upper()] is None
    assert "backbone" not in recipe_options("SparseDETR")
    assert {"keep_ratio", "num_classes", "scorer"} <= set(recipe_options("SparseDETR"))


def test_the_number_of_classes_comes_from_one_key():
    model = build_model(make_cfg("SparseDETR", **SIZES, scorer="objectness"))
    counts = {m.class_embed.out_features for m in model.modules() if hasattr(m, "class_embed")}
    assert counts == {NUM_CLASSES}
