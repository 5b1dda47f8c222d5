"""Activation checkpointing: less memory for more time (Chen et al. 2016, Training Deep Nets with Sublinear Memory)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparse_detr.errors import UserError

PARTS = ("backbone", "encoder", "decoder")
# Attributes of backbones that hold their blocks, or stages of blocks.
_BLOCKS = ("features", "stages", "layers")


def checkpoint_activations(model: nn.Module, parts: Sequence[str]) -> None:
    """Let the layers of some parts keep their inputs only, and compute their activations again in the backward pass.

    Losses and gradients stay the same, dropout included. Only training keeps activations, so nothing else changes.

    Args:
        model: a `GeneralizedDETR`; its layers are changed in place, no weight is renamed.
        parts: of `PARTS`.

    Raises:
        UserError: there is no such part, or this backbone has no blocks that are known.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f"checkpoint_activations has {part!r}; choose from {', '.join(PARTS)}")
        for module in _blocks(getattr(model, part)) if part == "backbone" else getattr(model, part).layers:
            module.forward = partial(_forward, module.forward)


def _forward(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _blocks(backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a backbone that have a gradient: the residual blocks of a ResNet, blocks of other kinds."""
    groups = next((getattr(backbone, name) for name in _BLOCKS if hasattr(backbone, name)), None)
    if groups is None:
        raise UserError(
            f"checkpoint_activations does not know the blocks of {type(backbone).__name__}; leave 'backbone' out"
        )
    for block in _flat(groups):
        if any(parameter.requires_grad for parameter in block.parameters()):
            yield block


def _flat(groups: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for group in groups:
        if type(group) is nn.Sequential:
            yield from group
        else:
            yield group
