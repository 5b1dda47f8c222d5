"""Check the arguments of the calls in a lazy config against the annotations of what they call."""

import types
import typing
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from detectron2.utils.registry import locate

from sparse_detr.errors import UserError


def check_arguments(settings: dict[str, Any]) -> None:
    """Refuse a `_target_` that cannot be called, and arguments whose type is not the annotated one.

    Args:
        settings: a lazy config as plain dicts and lists.

    Raises:
        UserError: names the key, its value and the values that are allowed.
    """
    for key, group in groups(settings):
        if "_target_" in group:
            _check_call(key, group)


def groups(settings: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the key and content of every group, outer groups first."""
    waiting = [(key, settings)]
    while waiting:
        key, node = waiting.pop()
        if isinstance(node, dict):
            yield key, node
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        waiting += [(below(key, name), value) for name, value in items]


def below(key: str, name: Any) -> str:
    """Return the key of `name` in the group at `key`."""
    return f"{key}.{name}" if key else str(name)


def _check_call(key: str, group: dict[str, Any]) -> None:
    target = group["_target_"]
    try:
        function: Any = locate(target) if isinstance(target, str) else target
    except Exception as error:  # importing what a config names may raise anything
        if is_ours(target):
            raise UserError(
                f"{key}._target_={target} is not in this version of sparse_detr; in place of a config.yaml of another "
                "version give the config that its training was started with and the same overrides: its checkpoints "
                "load and resume"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{key}._target_={target} cannot be imported: {reason}") from error
    if not callable(function):
        raise UserError(f"{key}._target_={target} cannot be used; give the name of a class or a function")
    for name, hint in _hints(function).items():
        if name in group and not _fits(group[name], hint):
            raise UserError(f"{below(key, name)}={group[name]} cannot be used; give {_words(hint)}")


def is_ours(target: Any) -> bool:
    """Return whether a callable, or the name of one, belongs to this package."""
    return (target if isinstance(target, str) else str(getattr(target, "__module__", ""))).startswith("sparse_detr.")


@cache
def _hints(function: Any) -> dict[str, Any]:
    """Return the annotated types of the arguments of a class or function of this package; {} for any other."""
    if not is_ours(function):
        return {}
    try:
        return typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    except Exception:  # an annotation may name a type that is imported for type checkers only
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Return whether a value fits an annotation; what a group in the config will return is not known yet."""
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, dict):
        return hint not in (bool, int, float, str) and origin is not typing.Literal
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, choice) for choice in choices)
    if origin is typing.Literal:
        return any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices)
    if hint is type(None):
        return value is None
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        item = choices[0] if choices else Any
        return isinstance(value, list | tuple) and all(_fits(one, item) for one in value)
    if isinstance(hint, type) and hint is not object:
        return not isinstance(value, str | int | float | bool | list | None)
    return True


def _words(hint: Any) -> str:
    """Return an annotation in plain words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    origin, choices = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, choices))}"
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(_words(choice) for choice in choices)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"a list, each value {_words(choices[0])}" if choices else "a list"
    return names.get(hint) or f"a group that makes a {getattr(hint, '__name__', hint)}"
