"""Agreement between the processes of one training."""

from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def largest_of_ranks(value: int, device: torch.device) -> int:
    """The largest `value` of all processes; every process must call it."""
    if comm.get_world_size() == 1:
        return value
    shared = torch.tensor([value], device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def from_main_process(value: Any) -> Any:
    """What the main process holds as `value`; every process must call it."""
    return comm.all_gather(value)[0]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def wrap_for_ranks(model: nn.Module, device: torch.device, **ddp_options: Any) -> nn.Module:
    """The model itself for one process, else DistributedDataParallel on `device`."""
    device_ids = [comm.get_local_rank()] if device.type == "cuda" and comm.get_world_size() > 1 else None
    return create_ddp_model(model, device_ids=device_ids, **ddp_options)
