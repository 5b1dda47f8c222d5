"""The model that a converted checkpoint needs, as a config."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr.checkpoint.describe import Description
    from sparse_detr.recipes import BackboneSpec


def model_config(description: Description, *, behavior: str = "released", **arguments: Any) -> Any:
    """Return the LazyCall of the model that the converter found.

    `instantiate(model_config(converted.description)).load_state_dict(converted.state_dict)` is the whole way from a
    public file to a model.

    Args:
        description: of a `ConvertedCheckpoint`.
        behavior: `released`, as the weights were trained; `exact` to train on.
        arguments: of the recipe, instead of those that were found; for example another `backbone`.

    Raises:
        UserError: the file holds a backbone alone, or has a backbone that no recipe makes and `arguments` has none.
    """
    from omegaconf import OmegaConf

    from sparse_detr import recipes

    if description.recipe is None:
        raise UserError("these are weights of a backbone, not of a detector; give them as train.init_checkpoint")
    if "backbone" not in arguments:
        if description.backbone is None:
            raise UserError("the backbone of this file is unknown; give one: model_config(description, backbone=...)")
        arguments["backbone"] = backbone_spec(description.backbone)
    recipe = getattr(recipes, description.recipe)
    config = recipe(behavior=behavior, **{**description.arguments, **arguments})
    for key, value in description.overrides.items():
        OmegaConf.update(config, key, value)
    return config


def backbone_spec(call: str) -> BackboneSpec:
    """Return the result of a call of a function of `sparse_detr.recipes`, such as `resnet(50, freeze_at=1)`.

    The text is not executed: the function is looked up by its name, and arguments must be literals.

    Raises:
        ValueError: the text is not such a call.
    """
    from sparse_detr import recipes

    try:
        expression = ast.parse(call, mode="eval").body
        if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
            raise ValueError("no call of a function")
        function = getattr(recipes, expression.func.id)
        positional = [ast.literal_eval(argument) for argument in expression.args]
        named = {str(word.arg): ast.literal_eval(word.value) for word in expression.keywords}
    except (SyntaxError, AttributeError, ValueError) as error:
        raise ValueError(
            f"a backbone is named by a call of a recipe, such as resnet(50), got {call!r}: {error}"
        ) from error
    return function(*positional, **named)
