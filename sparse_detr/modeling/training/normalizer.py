"""Normalisers of losses that are the same in all processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.distributed as dist
from torch import Tensor

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Run the block without exchange between processes, such as when one process looks for its own NaN."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def mean_over_processes(count: Tensor) -> Tensor:
    """Return the mean of a count over processes, at least 1, so that averaged gradients are those of all images."""
    count = count.clone()
    if dist.is_available() and dist.is_initialized() and not _alone.get():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)
