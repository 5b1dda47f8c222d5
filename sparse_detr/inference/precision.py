"""The precisions of the inference form by name, for commands and the `Predictor`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sparse_detr.errors import UserError
from sparse_detr.inference.optimize import optimize
from sparse_detr.modeling.transformer import DetectionTransformer

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": torch.float32},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "int8": {"dtype": torch.float32, "int8": True},
}
"""Name -> options of `optimize`."""


def precision_name(value: Any) -> str | None:
    """Return the name of a precision: of True `fp32`, of False None.

    Raises:
        UserError: there is no such precision.
    """
    if isinstance(value, bool):
        return "fp32" if value else None
    if value is None or (isinstance(value, str) and value in PRECISIONS):
        return value
    raise UserError(f"optimize is {value!r}; give True, False or one of {', '.join(PRECISIONS)}")


def optimize_to(model: nn.Module, precision: str | None) -> nn.Module:
    """Return the inference form of a model in eval mode; the model itself if `precision` is None.

    Raises:
        UserError: the model has no inference form of that precision on its device.
    """
    if precision is None:
        return model
    if not isinstance(model, DetectionTransformer):
        raise UserError(f"a {type(model).__name__} has no inference form; leave optimize out")
    try:
        return optimize(model, **PRECISIONS[precision])
    except ValueError as error:
        raise UserError(f"optimize is {precision}, but {error}") from error
