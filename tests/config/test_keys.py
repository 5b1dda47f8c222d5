"""The yacs keys of this project."""

import pytest
from detectron2.config import get_cfg

from sparse_detr.config import add_detr_config
from sparse_detr.errors import UserError
from sparse_detr.recipes.meta_arch import RECIPES, recipe_options


def config(*overrides):
    cfg = get_cfg()
    add_detr_config(cfg)
    cfg.merge_from_list(list(overrides))
    return cfg


def test_keys_are_the_arguments_of_the_recipes_and_are_none_by_default():
    cfg = config()
    options = {option.upper() for recipe in RECIPES for option in recipe_options(recipe)}
    assert set(cfg.MODEL.DETR) == options
    assert set(cfg.MODEL.DETR.values()) == {None}
    assert {"KEEP_RATIO", "NUM_CLASSES"} <= options


def test_adding_the_keys_twice_keeps_the_values():
    cfg = config("MODEL.DETR.NUM_CLASSES", "3")
    add_detr_config(cfg)
    assert cfg.MODEL.DETR.NUM_CLASSES == 3


def test_key_that_the_recipe_does_not_have_is_refused():
    from detectron2.modeling import build_model

    cfg = config("MODEL.META_ARCHITECTURE", "DeformableDETR", "MODEL.DETR.KEEP_RATIO", "0.3")
    with pytest.raises(UserError, match="DeformableDETR has no option MODEL.DETR.KEEP_RATIO"):
        build_model(cfg)


def test_clipping_per_parameter_is_refused_with_the_key_to_use():
    from sparse_detr.config.run import make_run

    with pytest.raises(UserError, match="SOLVER.CLIP_GRAD_NORM"):
        make_run(config("SOLVER.CLIP_GRADIENTS.ENABLED", "True"))


def test_unknown_optimizer_names_the_choices():
    import torch

    from sparse_detr.config.run import make_run

    with pytest.raises(UserError, match="'LAMB'; choose ADAMW or SGD"):
        make_run(config("SOLVER.OPTIMIZER", "LAMB")).build_optimizer(torch.nn.Linear(1, 1))
