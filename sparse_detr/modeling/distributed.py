"""Normalisers that agree between processes."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(count: Tensor) -> Tensor:
    """Mean of a count over all processes, at least 1, so that averaged gradients are those of the joint batch."""
    count = count.clone()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return count.clamp(min=1)
