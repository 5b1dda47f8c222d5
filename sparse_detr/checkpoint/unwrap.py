"""From what a file holds to its weights alone."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sparse_detr.errors import UserError

# under these names training scripts keep the weights beside optimiser, epoch and arguments
WRAPPERS = ("model", "state_dict", "online_network_state_dict", "ema_model", "ema_state")
# written by the profiler `thop`, whose counters end up in a public file now and then
COUNTERS = ("total_ops", "total_params")


@dataclass(frozen=True)
class Unwrapped:
    """The weights of a file, and what is around them.

    Args:
        weights: by public name.
        arguments: what it was trained with; empty if it does not say.
        dropped: entries that are no weights.
        others: further sets of weights, such as averaged ones.
    """

    weights: dict[str, Tensor]
    arguments: dict[str, Any]
    dropped: tuple[str, ...]
    others: tuple[str, ...]


def unwrap(checkpoint: Mapping[str, Any]) -> Unwrapped:
    """Take the weights out of a checkpoint: the wrapper, `module.` prefixes and profiler counters go.

    Raises:
        UserError: it holds no tensors.
    """
    arguments: dict[str, Any] = {}
    others: list[str] = []
    entries = checkpoint
    while (wrapper := next((key for key in WRAPPERS if isinstance(entries.get(key), Mapping)), None)) is not None:
        arguments |= _as_dict(entries.get("args"))
        others += [key for key in WRAPPERS if key != wrapper and isinstance(entries.get(key), Mapping)]
        entries = entries[wrapper]
    weights = {
        str(name): value
        for name, value in entries.items()
        if isinstance(value, Tensor) and str(name).rsplit(".", 1)[-1] not in COUNTERS
    }
    if not weights:
        found = ", ".join(str(key) for key in list(entries)[:5]) or "nothing"
        raise UserError(
            f"no weights found: it holds {found}. Expected a state dict, or one under {', '.join(WRAPPERS)}."
        )
    dropped = tuple(str(name) for name in entries if str(name) not in weights)
    while all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return Unwrapped(weights=weights, arguments=arguments, dropped=dropped, others=tuple(others))


def _as_dict(arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, Namespace):
        return vars(arguments)
    return dict(arguments) if isinstance(arguments, Mapping) else {}
