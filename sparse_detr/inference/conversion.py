"""From a part to its inference form: a table, and a walk over all other modules.

A form is a module with the call signature of the part that it replaces. The walk copies every module without a form,
shallowly and with the same weights, and replaces the modules inside it. So a part that nobody wrote a form for stays
what it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part", bound=nn.Module)


class InferenceForm(nn.Module):
    """A part in inference form."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> nn.Module | None:
        """Return the form of a part; None if this part has none, so that it is copied.

        By default the form is the part under this class, which overrides some of its methods.
        """
        return copied(part, cls, convert)

    def train(self, mode: bool = True) -> InferenceForm:
        """Set eval mode.

        Raises:
            RuntimeError: training mode is asked for.
        """
        if mode:
            raise RuntimeError(
                "an optimised model cannot be trained; train the model that it was made from, then call optimize again"
            )
        return super().train(mode)


class PackedForm(InferenceForm):
    """A form that also holds its weight packed for the CPU: packed anew where the weight moves, and never pickled."""

    _packed: Any = None

    def _packed_weight(self) -> Any:
        """Return the packed weight; None where it cannot be packed."""
        raise NotImplementedError

    def _pack(self) -> None:
        self._packed = self._packed_weight()

    def _apply(self, fn: Any, recurse: bool = True) -> PackedForm:
        super()._apply(fn, recurse)
        self._pack()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_packed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._pack()


@dataclass(frozen=True, eq=False)
class Conversion:
    """How the modules of a model are replaced; a call converts one of them.

    Args:
        forms: class of a part -> class of its form, whose `of` makes it; subclasses need a row of their own.
        precise: classes whose weights keep their dtype, with all that is inside.
        dtype: dtype of the large matrix products; None for that of the weights.
        int8: whether linear layers of feed-forward networks and of values have int8 weights.
        cast: whether all other parameters take `dtype` too.
        done: the modules that were converted, so that a module with two places stays one module.
    """

    forms: Mapping[type, type[InferenceForm]]
    precise: tuple[type, ...]
    dtype: torch.dtype | None
    int8: bool
    cast: bool
    done: dict[tuple[int, torch.dtype | None, bool], nn.Module]

    def __call__(self, module: nn.Module) -> nn.Module:
        """Return the form of a module; the module is not changed."""
        convert = self.keeping_dtype() if isinstance(module, self.precise) else self
        key = id(module), convert.dtype, convert.int8
        if key not in self.done:
            form = convert.forms.get(type(module))
            made = None if form is None else form.of(module, convert)
            self.done[key] = copied(module, type(module), convert) if made is None else made
        return self.done[key]

    def keeping_dtype(self) -> Conversion:
        """Return the conversion of parts that rank tokens or place boxes: weights keep their dtype."""
        return replace(self, dtype=None, int8=False)

    def casting(self) -> Conversion:
        """Return the conversion of a part that runs in the lower dtype as a whole, such as a backbone."""
        return replace(self, cast=True, int8=False)

    def weight(self, weight: Tensor) -> Tensor:
        """Return a weight of a matrix product in the dtype of the form: the same memory if that is its own dtype."""
        return weight.detach().to(self.dtype or weight.dtype)


def copied(module: nn.Module, as_class: type[Part], convert: Conversion, **inside: nn.Module | None) -> Part:
    """Return a module of `as_class` with the attributes and weights of `module`, and the forms of what is inside it.

    Weights are the same memory, without gradient. `inside` are modules to use in place of those of the same name.
    """
    result = as_class.__new__(as_class)
    result.__dict__.update({name: _attribute(value, convert) for name, value in vars(module).items()})
    dtype = convert.dtype if convert.cast else None
    for name, parameter in module._parameters.items():
        if parameter is not None:
            result._parameters[name] = nn.Parameter(_cast(parameter.detach(), dtype), requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            result._buffers[name] = _cast(buffer, dtype)
    for name, child in module._modules.items():
        result._modules[name] = inside[name] if name in inside else None if child is None else convert(child)
    return result


def _attribute(value: Any, convert: Conversion) -> Any:
    """Return an attribute of a copied module: containers are copied, and lists of modules hold the forms."""
    if isinstance(value, list | tuple) and any(isinstance(item, nn.Module) for item in value):
        return type(value)(convert(item) if isinstance(item, nn.Module) else item for item in value)
    return copy.copy(value) if isinstance(value, dict | set | list) else value


def _cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    return x.to(dtype) if dtype is not None and x.is_floating_point() else x


def runs_eagerly() -> bool:
    """Return whether operations run now: not while a graph of standard operations is made by a compiler or tracer."""
    return not (torch.compiler.is_compiling() or torch.jit.is_tracing())
