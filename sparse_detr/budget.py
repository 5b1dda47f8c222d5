"""The budget of a call as users give it: checked, and compared with what a model can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparse_detr.budget_table import PLAIN, budget_within, check_limit
from sparse_detr.checks import check_share
from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from sparse_detr.modeling.effort import Effort
    from sparse_detr.modeling.selection import Budget

TIME = "ms:"


def checked_budget(name: str, value: Any, *, timed: bool = True) -> Budget | Effort | float | str | None:
    """Return a budget; a number of NumPy becomes Python's, and a text that is a number that number.

    Args:
        name: of the option, for the message.
        value: the budget.
        timed: a time like `ms:30` is a budget too.

    Raises:
        UserError: it is no budget.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return _parsed(name, value.strip(), timed)
    from torch import Tensor

    from sparse_detr.modeling.effort import Effort

    if isinstance(value, Effort) or (hasattr(value, "select") and not isinstance(value, type | Tensor)):
        return value
    check_share(name, value)
    return float(value)


def _parsed(name: str, text: str, timed: bool) -> float | str:
    from sparse_detr.modeling.effort import Effort, parse_effort

    if timed and text.startswith(TIME):
        check_limit(name, text)
        return text
    try:
        parsed = parse_effort(text)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    return parsed.tokens if isinstance(parsed.tokens, float) and parsed == Effort(tokens=parsed.tokens) else text


def check_tokens_alone(name: str, budget: Any) -> None:
    """Raise a `UserError` if a resolved budget also sets decoder layers or queries."""
    from sparse_detr.modeling.effort import effort_of_call

    effort = effort_of_call(budget)
    if effort.decoder_layers is not None or effort.query_numbers:
        raise UserError(f"{name} {budget} sets more than the tokens, which this command cannot; give tokens alone")


def resolved(budget: Any, *, weights: str, form: str | None, ema: bool = False) -> Any:
    """Return the budget that a time like `ms:30` means for a model; any other budget as it is.

    Args:
        budget: a checked budget.
        weights: checkpoint of the model, in whose folder `sparse-detr sweep` has written its table.
        form: precision of the inference form; None for the model as it is.
        ema: the model has the averaged weights of the checkpoint.

    Raises:
        UserError: see `budget_within`.
    """
    if isinstance(budget, str) and budget.startswith(TIME):
        return budget_within(budget, weights, form or PLAIN, ema=ema)
    return budget


def check_fits(name: str, budget: Any, model: nn.Module) -> None:
    """Raise a `UserError` if the model has no tokens to choose, or not the levels, layers or queries of the budget.

    Args:
        name: of the option, for the message.
        budget: a resolved budget; None fits every model.
        model: the detector.
    """
    from sparse_detr.modeling.effort import effort_of_call
    from sparse_detr.modeling.selection import LevelBudget, LevelSelector, budget_of_call
    from sparse_detr.modeling.transformer import DetectionTransformer

    if budget is None:
        return
    effort = effort_of_call(budget)
    if isinstance(model, DetectionTransformer):
        try:
            model.effort(effort)
        except ValueError as error:
            raise UserError(f"{name} is {budget}: {error}") from error
    elif effort.decoder_layers is not None or effort.query_numbers:
        raise UserError(f"{name} is {budget}, but a {type(model).__name__} has no such decoder; leave {name} out")
    if effort.tokens is None:
        return
    budget = effort.tokens
    selector = getattr(model, "selector", None)
    if isinstance(selector, LevelSelector):
        raise UserError(
            f"{name} is {budget}, but this model refines levels, not a share of the tokens; leave {name} out"
        )
    if is_dense(model):
        if budget != 1:
            raise UserError(
                f"{name} is {budget}, but this model has a dense encoder, which refines every token; leave {name} out"
            )
        return
    levels = getattr(getattr(model, "tokenizer", None), "num_levels", None)
    if isinstance(budget, LevelBudget) and levels is not None and len(budget.shares) != levels:
        raise UserError(
            f"{name} {budget} has {len(budget.shares)} shares, but this model {levels} levels; give one share for "
            "every level, fine to coarse"
        )
    budget_of_call(budget, selector.budget)  # type: ignore[union-attr]


def is_dense(model: nn.Module) -> bool:
    """Return whether the encoder refines every token, so that there is no budget to choose."""
    from sparse_detr.modeling.selection import KeepAllTokens

    return isinstance(getattr(model, "selector", KeepAllTokens()), KeepAllTokens)
