"""Numbers that a user gives."""

from numbers import Real
from typing import Any

from sparse_detr.errors import UserError


def check_share(name: str, value: Any) -> None:
    """Raise a `UserError` unless `value` is in (0, 1]."""
    if not (is_real(value) and 0 < value <= 1):
        raise UserError(f"{name} {number_or_quoted(value)} is no share; give a number above 0, at most 1")


def check_score(name: str, value: Any) -> None:
    """Raise a `UserError` unless `value` is in [0, 1]."""
    if not (is_real(value) and 0 <= value <= 1):
        raise UserError(f"{name} {number_or_quoted(value)} is no score; give a number from 0 to 1")


def is_real(value: Any) -> bool:
    """Return whether a value is a number, NumPy's too, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def number_or_quoted(value: Any) -> str:
    """Return a value as a message names it."""
    return f"{value:g}" if is_real(value) else repr(value)
