"""Backbones by the names that the converter gives."""

import ast

from sparse_detr import recipes


def named_backbone(call):
    """Return the result of a call such as `resnet(50, freeze_at=1)` of a recipe; arguments are literals."""
    expression = ast.parse(call, mode="eval").body
    if not isinstance(expression, ast.Call) or not isinstance(expression.func, ast.Name):
        raise ValueError(f"a backbone is named by a call of a recipe, got {call!r}")
    function = getattr(recipes, expression.func.id)
    arguments = [ast.literal_eval(argument) for argument in expression.args]
    return function(*arguments, **{word.arg: ast.literal_eval(word.value) for word in expression.keywords})
