"""Carry the state of an optimiser over to one with other settings, by the names of the parameters.

The momenta come from the checkpoint, the settings (learning rate, weight decay, betas, ...) from the config. Torch's
own `load_state_dict` takes both from the checkpoint and needs the same groups.
"""

import logging
from collections import defaultdict
from typing import Any

import torch
from detectron2.solver.lr_scheduler import LRMultiplier
from torch import nn

from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

_REMEDY = (
    "use the settings that it was trained with, or start a new training from its weights "
    "(train.init_checkpoint, MODEL.WEIGHTS; another output folder)"
)
_OF_SCHEDULE = ("lr", "initial_lr")
_CHANGES_THE_STATE = ("amsgrad",)
_HOW_IT_IS_COMPUTED = ("foreach", "fused")


def names_of_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Return the names of the parameters of each group, in the optimiser's order; one outside the model is numbered."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [
        [
            names.get(id(parameter), f"parameter {index} of group {number}")
            for index, parameter in enumerate(group["params"])
        ]
        for number, group in enumerate(optimizer.param_groups)
    ]


def describe_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what `carry_over` needs besides the optimiser's own state, in plain values."""
    return {"class": type(optimizer).__name__, "names": names_of_groups(model, optimizer)}


def carry_over(
    old: dict[str, Any], described: dict[str, Any] | None, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Return a state for `optimizer` with its own groups and settings and a checkpoint's momenta; log what differs.

    Args:
        old: `state_dict()` of the checkpoint's optimiser.
        described: its `describe_optimizer`; None in a checkpoint of an older version, whose groups must be the same in
            the same order.

    Raises:
        UserError: the state cannot be used by this optimiser.
    """
    names = names_of_groups(model, optimizer)
    old_names = described["names"] if described else _assume_names(old, names)
    _check_kind(old, described, optimizer)
    fresh = optimizer.state_dict()
    old_groups = dict(_by_name(old_names, old["param_groups"]))
    old_index = dict(_each(old_names, [group["params"] for group in old["param_groups"]]))
    new_index = dict(_each(names, [group["params"] for group in fresh["param_groups"]]))
    state = {
        index: old["state"][old_index[name]]
        for name, index in new_index.items()
        if name in old_index and old_index[name] in old["state"]
    }
    parameters = dict(_each(names, [group["params"] for group in optimizer.param_groups]))
    _check_shapes({name: (state[index], parameters[name]) for name, index in new_index.items() if index in state})
    groups = [
        _with_rate(group, members, old_groups) for group, members in zip(fresh["param_groups"], names, strict=True)
    ]
    _log_parameters(set(old_index), set(new_index))
    _log_settings(old_groups, dict(_by_name(names, groups)))
    return {"state": state, "param_groups": groups}


def restart_schedule(scheduler: Any, optimizer: torch.optim.Optimizer) -> None:
    """Set a torch scheduler, after it was loaded, to the base learning rates of the optimiser.

    fvcore's schedules have no state, so they need no such change.
    """
    if not isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler):
        return
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if isinstance(scheduler, LRMultiplier):
        for group, lr in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
            group["lr"] = lr


def _each(names: list[list[str]], values: list[list[Any]]) -> list[tuple[str, Any]]:
    return [pair for group, inner in zip(names, values, strict=True) for pair in zip(group, inner, strict=True)]


def _by_name(names: list[list[str]], groups: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, group) for members, group in zip(names, groups, strict=True) for name in members]


def _base_rate(group: dict[str, Any]) -> float:
    """Return the learning rate of a group before the schedule."""
    return group.get("initial_lr", group["lr"])


def _with_rate(group: dict[str, Any], members: list[str], old_groups: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a new group with its learning rate: the checkpoint's multiplier times the new base rate."""
    base = _base_rate(group)
    old = next((old_groups[name] for name in members if name in old_groups), None)
    if old is None:
        rate = group["lr"]
    elif _base_rate(old) == base:
        rate = old["lr"]
    else:
        rate = base * old["lr"] / _base_rate(old) if _base_rate(old) else base
    return {**group, "initial_lr": base, "lr": rate}


def _assume_names(old: dict[str, Any], names: list[list[str]]) -> list[list[str]]:
    sizes, old_sizes = ([len(group) for group in groups] for groups in (names, _params(old)))
    if sizes != old_sizes:
        raise UserError(
            f"the checkpoint's optimiser has groups of {_sizes_as_text(old_sizes)} parameters and the config gives "
            f"{_sizes_as_text(sizes)}; it is of an older version, which kept no names to tell them apart; {_REMEDY}"
        )
    return names


def _params(state: dict[str, Any]) -> list[list[int]]:
    return [group["params"] for group in state["param_groups"]]


def _sizes_as_text(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes))


def _check_kind(old: dict[str, Any], described: dict[str, Any] | None, optimizer: torch.optim.Optimizer) -> None:
    kind, old_group, group = type(optimizer).__name__, old["param_groups"][0], optimizer.param_groups[0]
    if described and described["class"] != kind:
        raise UserError(f"the checkpoint's optimiser is {described['class']} and the config's is {kind}; {_REMEDY}")
    if ("betas" in old_group) != ("betas" in group):
        raise UserError(f"the checkpoint's optimiser is of another kind than the config's {kind}; {_REMEDY}")
    for key in _CHANGES_THE_STATE:
        if old_group.get(key) != group.get(key):
            raise UserError(
                f"the checkpoint's optimiser has {key}={old_group.get(key)} and the config's {group.get(key)}, "
                f"which needs other momenta; {_REMEDY}"
            )


def _check_shapes(pairs: dict[str, tuple[dict[str, Any], torch.Tensor]]) -> None:
    for name, (momenta, parameter) in pairs.items():
        for key, value in momenta.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise UserError(
                    f"the checkpoint's {key} of {name} has shape {list(value.shape)} and the parameter "
                    f"{list(parameter.shape)}; {_REMEDY}"
                )


def _log_parameters(old: set[str], new: set[str]) -> None:
    for what, names in (("now frozen", old - new), ("trained from here on, with new momenta", new - old)):
        if names:
            shown = sorted(names)
            more = f" and {len(shown) - 3} more" if len(shown) > 3 else ""
            logger.warning(f"parameters that are {what}: {', '.join(shown[:3])}{more}")


def _log_settings(old: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> None:
    """Log one line for each setting that differs: old -> new, and the number of parameters."""
    ignored = {"params", *_OF_SCHEDULE, *_HOW_IT_IS_COMPUTED}
    for key in sorted({key for group in new.values() for key in group} - ignored):
        _log_changes(key, {name: (old[name].get(key), new[name].get(key)) for name in new if key in old.get(name, {})})
    rates = {name: (_base_rate(old[name]), _base_rate(new[name])) for name in new if name in old}
    _log_changes("learning rate", rates)


def _log_changes(what: str, values: dict[str, tuple[Any, Any]]) -> None:
    counts: dict[str, int] = defaultdict(int)
    for before, after in values.values():
        before, after = (tuple(v) if isinstance(v, list) else v for v in (before, after))
        if before != after:
            counts[f"{before} -> {after}"] += 1
    if counts:
        changes = ", ".join(f"{change} ({count} parameters)" for change, count in counts.items())
        logger.warning(f"the optimiser's {what} differs from the checkpoint's: {changes}")
