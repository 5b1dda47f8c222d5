"""Backbones as the converter names them."""

import ast

from sparse_detr import recipes


def named_backbone(call):
    """What a call such as `resnet(50, freeze_at=1)` of a function of `sparse_detr.recipes` gives; literals only."""
    expression = ast.parse(call, mode="eval").body
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise ValueError(f"a backbone is named by a call of a recipe, got {call!r}")
    function = getattr(recipes, expression.func.id)
    arguments = [ast.literal_eval(argument) for argument in expression.args]
    return function(*arguments, **{word.arg: ast.literal_eval(word.value) for word in expression.keywords})
