"""Take the weights out of what a checkpoint file holds."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparse_detr.checkpoint import mmdet_names
from sparse_detr.errors import UserError

# the keys under which training scripts keep the weights, beside optimiser, epoch and arguments
PLAIN = (
    "model",
    "state_dict",
    "model_state",
    "model_state_dict",
    "online_network_state_dict",
    "network",
    "net",
    "params",
    "weights",
)
# keys of averaged weights of other code, which are taken if the file has no others
AVERAGED_ALONE = ("ema_model", "ema_state")
AVERAGED = ("ema", "model_ema", "ema_state_dict", "state_dict_ema", *AVERAGED_ALONE)
WRAPPERS = (*PLAIN, *AVERAGED_ALONE, "module", "checkpoint")
# counters in some public files, written by the profiler `thop` and by torch's averaging
TORCH_AVERAGE = "n_averaged"
# MMEngine's counter, in a set of weights that it has exchanged with the plain one
MMENGINE_AVERAGE = "steps"
COUNTERS = ("total_ops", "total_params", TORCH_AVERAGE)
# prefixes of DistributedDataParallel and averaging, of torch.compile, and of training frameworks
PREFIXES = ("module.", "_orig_mod.", "model.")
# the entry of this project's best model that says which weights were scored, and its value for averaged ones
KIND, OF_AVERAGE = "weights", "averaged"
DEEPEST = 8  # nested wrappers at most; a damaged file may contain itself


@dataclass(frozen=True)
class Unwrapped:
    """The weights of a file, and what it holds beside them.

    Args:
        weights: by public name.
        arguments: the settings of the training that the file holds, by name; empty if it has none.
        dropped: names of entries that are no weights.
        others: further sets of weights, such as averaged ones.
    """

    weights: dict[str, Tensor]
    arguments: dict[str, Any]
    dropped: tuple[str, ...]
    others: tuple[str, ...]


def unwrap(checkpoint: Mapping[str, Any], *, averaged: bool = False) -> Unwrapped:
    """Take the weights out of a checkpoint, without wrappers, prefixes such as `module.` and counters.

    Args:
        averaged: take the averaged weights (`AVERAGED`) instead of the plain ones.

    Raises:
        UserError: the file holds no such weights, or some are not plain tensors; says what it holds.
    """
    arguments: dict[str, Any] = {}
    others: list[str] = []
    entries, below_average = checkpoint, False
    for _ in range(DEEPEST):
        wrapper = _wrapper(entries, averaged and not below_average)
        if wrapper is None:
            break
        below_average = below_average or wrapper in AVERAGED or _is_averaged_by_mmengine(entries)
        arguments |= _as_dict(entries.get("args")) | mmdet_names.training_arguments(entries.get("meta"))
        others += [key for key in (*WRAPPERS, *AVERAGED) if key != wrapper and _is_filled(entries.get(key))]
        entries = entries[wrapper]
    if averaged and not (below_average or TORCH_AVERAGE in entries or holds_average(checkpoint)):
        raise UserError(
            f"no averaged weights found: it holds {_listed(checkpoint)}; load the plain ones, without --ema"
        )
    if TORCH_AVERAGE in entries and not averaged and not below_average:
        raise UserError(_average_alone(TORCH_AVERAGE))
    found = {
        name: value
        for name, value in entries.items()
        if isinstance(value, Tensor) and _is_name(name) and name.rsplit(".", 1)[-1] not in COUNTERS
    }
    if not found:
        raise UserError(_no_weights(entries))
    for name, value in found.items():
        _check_tensor(name, value)
    dropped = tuple(_shown(name) for name in entries if name not in found)
    return Unwrapped(_without_prefixes(found), arguments, dropped, tuple(dict.fromkeys(others)))


def holds_average(checkpoint: Mapping[str, Any]) -> bool:
    """Return whether the weights under "model" are averaged ones, as in a best model that was chosen by their score."""
    return checkpoint.get(KIND) == OF_AVERAGE


def _wrapper(entries: Mapping[str, Any], averaged: bool) -> str | None:
    """Return the key of the next wrapper; None if `entries` are the weights."""
    keys = (*AVERAGED, *WRAPPERS) if averaged and not _is_averaged_by_mmengine(entries) else WRAPPERS
    return next((key for key in keys if _is_filled(entries.get(key))), None)


def _is_averaged_by_mmengine(entries: Mapping[str, Any]) -> bool:
    """Return whether `state_dict` holds the averaged weights, and `ema_state_dict` those before averaging."""
    others = entries.get("ema_state_dict")
    return isinstance(others, Mapping) and MMENGINE_AVERAGE in others


def _is_filled(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0


def _is_name(name: Any) -> bool:
    """Return whether a key can name a weight; a damaged file may have any keys."""
    return isinstance(name, str) and name.isprintable()


def _no_weights(entries: Mapping[str, Any]) -> str:
    if alone := next((key for key in AVERAGED if _is_filled(entries.get(key))), None):
        return _average_alone(alone)
    return f"no weights found: it holds {_listed(entries)}; give a state dict, or one under {', '.join(WRAPPERS)}"


def _average_alone(key: str) -> str:
    return f"it holds averaged weights alone ({key}); use --ema (in Python ema=True) to load them"


def _listed(entries: Mapping[str, Any]) -> str:
    """Return the first keys and the types of their values, as text."""
    listed = [f"{_shown(key)} ({type(value).__name__})" for key, value in list(entries.items())[:5]]
    return ", ".join(listed) + (f" and {len(entries) - 5} more" if len(entries) > 5 else "") or "nothing"


def _shown(key: Any) -> str:
    text = key if _is_name(key) else ascii(key)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _check_tensor(name: str, value: Tensor) -> None:
    """Refuse a tensor that a layer cannot take: copying would fail, or lose a part of it without an error."""
    kinds = {
        "quantised; dequantize()": value.is_quantized,
        "sparse; to_dense()": not value.is_quantized and value.layout != torch.strided,
        "complex; real numbers": value.is_complex(),
        "without values (meta); real weights": value.is_meta,
        "of 8-bit numbers, which need a scale; the weights before quantisation": _is_8_bit(value),
    }
    if kind := next((kind for kind, found in kinds.items() if found), None):
        what, remedy = kind.split("; ")
        raise UserError(f"the entry {_shown(name)} is {what}; save {remedy} in its place")


def _is_8_bit(value: Tensor) -> bool:
    return not value.is_quantized and value.dtype != torch.bool and value.element_size() == 1


def _without_prefixes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((mark for mark in PREFIXES if all(name.startswith(mark) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _as_dict(arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, Namespace):
        return vars(arguments)
    return dict(arguments) if isinstance(arguments, Mapping) else {}
