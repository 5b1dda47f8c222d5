"""Put the op under the models of other packages: `patch("transformers")`, `patch("mmcv")`, `patch("detrex")`.

A package keeps its modules and weights; what changes is the function or method that reads the samples. What a package
computes in another way, such as the method "discrete" of RT-DETRv2 and D-FINE, keeps its own code.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.ops.functions import multi_scale_deformable_attention
from sparse_detr.ops.reference import OUTSIDE

logger = logging.getLogger(__name__)

# Arguments of what is replaced; a release of a package that changes them keeps its own code.
OF_LAYER = (
    "self",
    "value",
    "value_spatial_shapes",
    "value_spatial_shapes_list",
    "level_start_index",
    "sampling_locations",
    "attention_weights",
    "im2col_step",
)
OF_FUNCTION = ("value", "value_spatial_shapes", "sampling_locations", "attention_weights")
OF_FUNCTION_WITH_POINTS = (*OF_FUNCTION, "num_points_list", "method")

_STORED = "ms_deformable_attn_core"  # where the layers of D-FINE and DEIMv2 keep the function


@dataclass(frozen=True)
class Patch:
    """What `patch` did to a package. As a context manager it is undone at the end of the block.

    Args:
        package: the name that `patch` was given.
        replaced: names of the functions and methods in whose place the op is.
        left: names of those that keep their own code, and why.
    """

    package: str
    replaced: tuple[str, ...]
    left: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Patch:
        return self

    def __exit__(self, *_: object) -> None:
        unpatch(self.package)


@dataclass(frozen=True)
class _Change:
    """An attribute to set: `owner.name = new`, called `label`; or, with no new value, why it stays as it is."""

    label: str
    owner: Any = None
    name: str = ""
    new: Any = None
    reason: str = ""


_ABSENT = object()
_active: dict[str, tuple[Patch, list[tuple[Any, str, Any]]]] = {}


def patch(package: str, *, strict: bool = False) -> Patch:
    """Put the op under the multi-scale deformable attention of another package, for all its models in this process.

    Models that exist already are included. A second call changes nothing and returns the first one's result.

    Args:
        package: `transformers` (5.x), `mmcv` or `detrex`.
        strict: raise if nothing was replaced; otherwise there is a warning in the log.

    Returns:
        What was replaced and what was left. `with patch(...):` undoes it at the end of the block.

    Raises:
        ValueError: the package is not one of these.
        RuntimeError: nothing was replaced, and `strict` is set.
    """
    if package not in _PACKAGES:
        raise ValueError(f"package must be one of {', '.join(_PACKAGES)}, got {package!r}")
    if package in _active:
        return _active[package][0]
    changes = list(_PACKAGES[package]())
    left = {change.label: change.reason for change in changes if change.reason}
    made = [change for change in changes if not change.reason]
    result = Patch(package, tuple(change.label for change in made), left)
    if not made:
        why = "; ".join(f"{name}: {reason}" for name, reason in left.items()) or "it holds no such attention"
        message = f"nothing of {package} was replaced: {why}"
        if strict:
            raise RuntimeError(message)
        logger.warning(message)
        return result
    _active[package] = (result, [_set(change) for change in made])
    return result


def unpatch(package: str | None = None) -> None:
    """Undo `patch`.

    Args:
        package: as for `patch`; None for all. One that was not patched is left as it is.
    """
    for name in [package] if package is not None else list(_active):
        if name not in _active:
            continue
        for owner, attribute, old in reversed(_active.pop(name)[1]):
            if old is _ABSENT:
                delattr(owner, attribute)
            else:
                setattr(owner, attribute, old)


def _set(change: _Change) -> tuple[Any, str, Any]:
    """Make a change; return what undoes it. A class gets back what its own namespace held, not what it inherits."""
    old = vars(change.owner).get(change.name, _ABSENT)
    setattr(change.owner, change.name, change.new)
    return change.owner, change.name, old


# The op in the forms in which packages call it


def _attend(value: Tensor, spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Call the op; the result has the dtype that PyTorch's operations would give it."""
    shapes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    weights = attention_weights.reshape(sampling_locations.shape[:-1])
    output = multi_scale_deformable_attention(value, shapes, sampling_locations, weights)
    return output.to(torch.promote_types(value.dtype, attention_weights.dtype))


def _layer_forward(
    self: nn.Module,
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_spatial_shapes_list: Sequence[tuple[int, int]],
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    return _attend(value, value_spatial_shapes_list, sampling_locations, attention_weights)


def _function(
    value: Tensor, value_spatial_shapes: Any, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    return _attend(value, value_spatial_shapes, sampling_locations, attention_weights)


def _apply(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Take the arguments of the CUDA function of mmcv and detrex; its result has the dtype of the value."""
    return _attend(value, value_spatial_shapes, sampling_locations, attention_weights).to(value.dtype)


def _function_with_points(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the form of RT-DETRv2 and D-FINE, in which levels may differ in their number of points."""

    def attend_with_points(
        value: Tensor,
        value_spatial_shapes: Any,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        num_points_list: list[int],
        method: str = "default",
    ) -> Tensor:
        if method != "default":
            return original(value, value_spatial_shapes, sampling_locations, attention_weights, num_points_list, method)
        locations, weights = _by_level(sampling_locations, attention_weights, num_points_list)
        return _attend(value, value_spatial_shapes, locations, weights)

    return attend_with_points


def _by_level(locations: Tensor, weights: Tensor, num_points: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return (B, Q, M, L, P, 2) and (B, Q, M, L, P) from (B, Q, M, S, 2) and (B, Q, M, S), S the points of all levels.

    P is the largest number of points; levels with fewer get points outside of the map with the weight zero.
    """
    most = max(num_points)
    if min(num_points) == most:
        return locations.unflatten(3, (-1, most)), weights.unflatten(3, (-1, most))
    padded_locations = [
        F.pad(level, (0, 0, 0, most - level.shape[3]), value=OUTSIDE)
        for level in locations.split(list(num_points), dim=3)
    ]
    padded_weights = [F.pad(level, (0, most - level.shape[3])) for level in weights.split(list(num_points), dim=3)]
    return torch.stack(padded_locations, 3), torch.stack(padded_weights, 3)


class _StoredFunction:
    """An attribute of a class of layers that holds `original` or another function, and reads as `new` for `original`.

    What a layer stores stays what it was, so layers can be pickled, and are as before when the attribute is removed.
    """

    def __init__(self, name: str, original: Callable[..., Tensor], new: Callable[..., Tensor]) -> None:
        self.name, self.original, self.new = name, original, new

    def __get__(self, layer: nn.Module | None, owner: type | None = None) -> Any:
        if layer is None:
            return self
        stored = layer.__dict__[self.name]
        return self.new if stored is self.original else stored

    def __set__(self, layer: nn.Module, value: Any) -> None:
        layer.__dict__[self.name] = value


# Where the packages have it


def _transformers() -> Iterator[_Change]:
    """Yield the changes of every model of transformers whose source defines this attention."""
    found = find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        yield _Change("transformers", reason="it is not installed; install it: pip install transformers")
        return
    for name in _models_with_attention(found.submodule_search_locations[0]):
        module, problem = _import(name)
        if module is None:
            yield _Change(name, reason=problem)
        else:
            yield from _changes_of_model(module)


@cache
def _models_with_attention(folder: str) -> tuple[str, ...]:
    """Return the modules of transformers whose source defines the attention; the others need not be imported."""
    defining = (b"class MultiScaleDeformableAttention(", b"def multi_scale_deformable_attention")
    paths = sorted(Path(folder, "models").glob("*/modeling_*.py"))
    contents = ((path, path.read_bytes()) for path in paths)
    found = [path for path, content in contents if any(words in content for words in defining)]
    return tuple(f"transformers.models.{path.parent.name}.{path.stem}" for path in found)


def _changes_of_model(module: ModuleType) -> Iterator[_Change]:
    layer = vars(module).get("MultiScaleDeformableAttention")
    if layer is not None:
        yield _checked(module, layer.__name__, OF_LAYER, layer.forward, owner=layer, name="forward", new=_layer_forward)
    for name, expected in (
        ("multi_scale_deformable_attention", OF_FUNCTION),
        ("multi_scale_deformable_attention_v2", OF_FUNCTION_WITH_POINTS),
    ):
        original = vars(module).get(name)
        if original is None:
            continue
        new = _function if expected is OF_FUNCTION else _function_with_points(original)
        holders = _classes_that_store(module)
        if not holders:
            yield _checked(module, name, expected, original, owner=module, name=name, new=new)
        for holder in holders:
            stored = _StoredFunction(_STORED, original, new)
            yield _checked(module, holder.__name__, expected, original, owner=holder, name=_STORED, new=stored)


def _classes_that_store(module: ModuleType) -> list[type]:
    """Return the classes of layers in a module that keep the function as an attribute when they are built."""
    classes = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    constructors = [(kind, getattr(vars(kind).get("__init__"), "__code__", None)) for kind in classes]
    return [kind for kind, code in constructors if code is not None and _STORED in code.co_names]


def _openmmlab_style(name: str) -> Iterator[_Change]:
    """Yield the changes of a module like mmcv's: a function for all devices, and a class with `apply` for GPUs."""
    module, problem = _import(name)
    if module is None:
        yield _Change(name, reason=problem)
        return
    original = vars(module).get("multi_scale_deformable_attn_pytorch")
    if original is not None:
        for holder in _modules_with(original.__name__, original):
            yield _checked(
                holder, original.__name__, OF_FUNCTION, original, owner=holder, name=original.__name__, new=_function
            )
    kernel = vars(module).get("MultiScaleDeformableAttnFunction")
    if kernel is not None:
        yield _Change(f"{name}.{kernel.__name__}.apply", kernel, "apply", staticmethod(_apply))


def _modules_with(name: str, content: object) -> list[ModuleType]:
    """Return the imported modules in which `name` is `content`: those that import it from its own module too."""
    modules = [module for module in list(sys.modules.values()) if isinstance(module, ModuleType)]
    return [module for module in modules if vars(module).get(name) is content]


def _checked(
    module: ModuleType, label: str, expected: Sequence[str], original: Callable, *, owner: Any, name: str, new: Any
) -> _Change:
    """Return the change, unless the original takes other arguments than the new one."""
    label = f"{module.__name__}.{label}"
    arguments = tuple(inspect.signature(original).parameters)
    if arguments != tuple(expected):
        return _Change(label, reason=f"it takes {', '.join(arguments)}, not {', '.join(expected)}")
    return _Change(label, owner, name, new)


def _import(name: str) -> tuple[ModuleType | None, str]:
    """Return a module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except Exception as error:  # a package may fail with anything, such as for a compiled part that it lacks
        return None, f"it cannot be imported ({type(error).__name__}: {error})"


_PACKAGES: dict[str, Callable[[], Iterator[_Change]]] = {
    "transformers": _transformers,
    "mmcv": lambda: _openmmlab_style("mmcv.ops.multi_scale_deform_attn"),
    "detrex": lambda: _openmmlab_style("detrex.layers.multi_scale_deform_attn"),
}
