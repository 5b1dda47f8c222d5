"""Normalisers that agree between processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.distributed as dist
from torch import Tensor

_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Exchange nothing with other processes inside the block, as when one of them looks for its own bad numbers."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def mean_over_processes(count: Tensor) -> Tensor:
    """Mean of a count over all processes, at least 1, so that averaged gradients are those of the joint batch."""
    count = count.clone()
    if dist.is_available() and dist.is_initialized() and not _alone.get():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)
