"""Put our weights into the entries of a public model: the inverse of `convert_checkpoint`, for every layout."""

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from sparse_detr.checkpoint.convert import convert_checkpoint, layout_of
from sparse_detr.checkpoint.name_maps import rename
from sparse_detr.errors import UserError


def invert_conversion(
    weights: Mapping[str, Tensor], template: Mapping[str, Tensor], source: str = "auto"
) -> dict[str, Tensor]:
    """Return our weights under the names and in the shapes of a public model.

    The conversion only moves and copies elements. So a file is converted whose elements are their own numbers; the
    result says for every element of ours where it comes from, and is the table of the way back.

    Args:
        weights: our names to float tensors; they are not changed.
        template: the state dict of the public model, without prefixes such as `module.`. Its values stay where nothing
            of ours belongs, such as counters.
        source: the layout of the template, a key of `LAYOUTS`, or "auto".

    Returns:
        The entries of the template, with our values.

    Raises:
        UserError: the public model has other shapes, no place for one of our weights, or one place for weights of
            ours that differ.
    """
    layout = layout_of(source, template)
    *starts, total = accumulate((value.numel() for value in template.values()), initial=1)  # 0: no element
    start_of = dict(zip(template, starts, strict=True))
    first = _first_of_aliases(list(template), layout.tables(list(template)))
    numbered = {
        name: torch.arange(value.numel(), dtype=torch.float64).view(value.shape) + start_of[first[name]]
        for name, value in template.items()
    }
    positions = convert_checkpoint(numbered, layout.name).state_dict
    _check_places(weights, positions)
    flat = torch.zeros(total, dtype=torch.float64)
    for name, value in template.items():
        flat[_numbers(numbered[name])] = value.detach().to("cpu", torch.float64).flatten()
    for name, numbers in positions.items():
        flat[_numbers(numbers)] = weights[name].detach().to("cpu", torch.float64).flatten()
    result = {name: flat[_numbers(numbered[name])].view(value.shape).to(value) for name, value in template.items()}
    _check_values(weights, convert_checkpoint(result, layout.name).state_dict)
    return result


def _first_of_aliases(names: list[str], tables: tuple) -> dict[str, str]:
    """Return for every name the first one that names the same weight; aliases share their numbers."""
    first: dict[str, str] = {}
    result = {}
    for name in names:
        ours = rename(name, tables)[0]
        result[name] = name if ours is None else first.setdefault(ours, name)
    return result


def _numbers(values: Tensor) -> Tensor:
    return values.long().flatten()


def _check_places(weights: Mapping[str, Tensor], positions: Mapping[str, Tensor]) -> None:
    if missing := sorted(positions.keys() - weights.keys()):
        raise UserError(f"the public model has {missing[0]}, which the weights here lack; build it as these models are")
    if surplus := sorted(weights.keys() - positions.keys()):
        raise UserError(f"the public model has no place for {surplus[0]}; leave it out, or choose another public model")
    for name, numbers in positions.items():
        if numbers.shape != weights[name].shape:
            ours, theirs = list(weights[name].shape), list(numbers.shape)
            raise UserError(f"{name} is {ours} here and {theirs} in the public model; build it with the same sizes")


def _check_values(weights: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Refuse weights that share a place of the public model, but differ."""
    for name, value in weights.items():
        if not torch.equal(found[name].to(value), value):
            raise UserError(
                f"the public model keeps {name} in a place that another weight shares, and the two differ here"
            )
