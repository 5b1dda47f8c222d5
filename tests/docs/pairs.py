"""Every option of a part that has several named values, and those that `behavior="released"` changes: from the code."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, get_args, get_origin

from omegaconf import DictConfig, ListConfig

from sparse_detr.recipes.meta_arch import RECIPES, recipe_options

ABSENT = object()


class Pair(NamedTuple):
    """An option, such as `TopKSelector.padding`, and its values in the two behaviors, as Python writes them."""

    option: str
    exact: str
    released: str


@cache
def pairs_of(name: str, origin: str | None = None) -> frozenset[Pair]:
    """Return the options that differ between the two behaviors of a meta-architecture."""
    recipe = RECIPES[name].functions[0]
    exact = dict(_options(recipe(behavior="exact")))
    released = dict(_options(recipe(behavior="released", **({"origin": origin} if origin else {}))))
    found = set()
    for path in exact.keys() | released.keys():
        part = (exact.get(path) or released[path])[0]
        values = [tree[path][1] if path in tree else _default(path, part) for tree in (exact, released)]
        if values[0] != values[1]:
            found.add(Pair(f"{part}.{path.rpartition('.')[2]}", *map(_text, values)))
    return frozenset(found)


def origins_of(name: str) -> list[str | None]:
    """Return the values of `origin` that a meta-architecture knows."""
    return ["official", "detrex"] if "origin" in recipe_options(name) else [None]


def all_pairs() -> set[Pair]:
    """Return the pairs of all meta-architectures."""
    return {pair for name in RECIPES for origin in origins_of(name) for pair in pairs_of(name, origin)}


def named_options() -> dict[str, tuple[str, ...]]:
    """Return the values of every option of a part that takes one of several names, by `Class.option`."""
    found = {}
    for package in ("sparse_detr.modeling", "sparse_detr.layers", "sparse_detr.backbones"):
        for module in _modules(package):
            for part in vars(module).values():
                if inspect.isclass(part) and part.__module__ == module.__name__ and "__init__" in vars(part):
                    for option, values in _literals(part):
                        found[f"{part.__name__}.{option}"] = values
    return found


def _literals(part: type) -> Iterator[tuple[str, tuple[str, ...]]]:
    names = vars(importlib.import_module(part.__module__))
    for option, parameter in inspect.signature(part).parameters.items():
        written = parameter.annotation
        kind = eval(written, names) if written in names or str(written).startswith("Literal[") else written
        if get_origin(kind) is Literal:
            yield option, get_args(kind)


def _modules(package: str) -> Iterator[Any]:
    root = importlib.import_module(package)
    yield root
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        yield importlib.import_module(module.name)


def _options(node: Any, path: str = "model", part: str = "") -> Iterator[tuple[str, tuple[str, Any]]]:
    """Yield the path of every value of a tree of lazy calls, the class that it is for, and the value.

    A part is a value of the option that holds it, by its name; a link to another option is the path of that one.
    """
    if isinstance(node, DictConfig):
        if "_target_" in node:
            target = node._target_
            name = (target if isinstance(target, str) else target.__name__).rpartition(".")[2]
            if part:
                yield path, (part, name)
            part = name
        for key in node:
            child = node._get_node(key)
            if key != "_target_" and child._is_interpolation():
                yield f"{path}.{key}", (part, child._value().strip("${.}"))
            elif key != "_target_":
                yield from _options(node[key], f"{path}.{key}", part)
    elif isinstance(node, ListConfig):
        for i, item in enumerate(node):
            yield from _options(item, f"{path}.{i}", part)
    else:
        yield path, (part, node)


def _default(path: str, part: str) -> Any:
    """Return the default of the option at the end of `path` of a class or function of the package."""
    for package in ("sparse_detr.modeling", "sparse_detr.layers"):
        for module in _modules(package):
            if hasattr(module, part):
                return inspect.signature(getattr(module, part)).parameters[path.rpartition(".")[2]].default
    return ABSENT


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
