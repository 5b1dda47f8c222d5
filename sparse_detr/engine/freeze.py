"""Freeze parts of a model by name."""

import logging
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

SETTING = "train.freeze (SOLVER.FREEZE)"


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Stop the training of the parts that the patterns name, in place; their batch norms keep their statistics too.

    Dropout in a frozen part stays as it is.

    Args:
        model: its frozen weights need no gradient, so that an optimizer made after this leaves them out.
        patterns: names of modules or weights, such as `backbone` or `encoder.layers.0`, which stand for all below
            them; `*` stands for any text, as in `encoder.layers.*.ffn`.

    Raises:
        UserError: no weight has such a name, or nothing would be left to train.
    """
    if not patterns:
        return
    weights = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        if not any(_is_below(name, pattern) for name in weights):
            raise UserError(f"{SETTING} names {pattern!r}, which is no part with weights; {_known(weights, pattern)}")
    for name, weight in weights.items():
        if any(_is_below(name, pattern) for pattern in patterns):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in weights.values()):
        raise UserError(f"{SETTING} leaves nothing to train; name fewer parts than {', '.join(patterns)}")
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and any(_is_below(name, pattern) for pattern in patterns):
            module.register_forward_pre_hook(_in_eval_mode)
    frozen = [weight.numel() for weight in model.parameters() if not weight.requires_grad]
    total = sum(weight.numel() for weight in model.parameters())
    logger.info(f"frozen: {sum(frozen):,} of {total:,} weights, with {', '.join(patterns)}")


def _in_eval_mode(module: nn.Module, inputs: Any) -> None:
    module.eval()


def _is_below(name: str, pattern: str) -> bool:
    """Return whether the pattern fits a name or one above it."""
    return any(fnmatchcase(above, pattern) for above in _with_those_above(name))


def _with_those_above(name: str) -> Iterator[str]:
    """Yield a dotted name, the one of the module that holds it, and so on."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _known(weights: dict[str, Any], pattern: str) -> str:
    """Return which names there are beside the first part of the pattern that does not exist."""
    prefix = next(
        (above for above in _with_those_above(pattern) if any(_is_below(name, above) for name in weights)), ""
    )
    depth = prefix.count(".") + 1 if prefix else 0
    below = {name.split(".")[depth] for name in weights if not prefix or name.startswith(f"{prefix}.")}
    known = sorted(below, key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    return f"{prefix or 'the model'} has {', '.join(known) or 'no parts'}"
