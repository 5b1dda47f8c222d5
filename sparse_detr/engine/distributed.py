"""Share values between the processes of a training."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparse_detr.errors import UserError


def largest_of_ranks(value: int, device: torch.device) -> int:
    """Return the largest `value` of all processes; every process must call this."""
    if comm.get_world_size() == 1:
        return value
    shared = torch.tensor([value], device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def from_main_process(value: Any) -> Any:
    """Return the `value` of the main process; every process must call this."""
    return comm.all_gather(value)[0]


def on_main_process(work: Callable[[], Any]) -> Any:
    """Call `work()` on the main process and return its result on every process; every process must call this.

    Raises:
        UserError: on the main process, if `work` raises it; the others exit with status 2 and no message.
    """
    if comm.get_world_size() == 1:
        return work()
    result, error = None, None
    if comm.is_main_process():
        try:
            result = work()
        except UserError as raised:
            error = raised
    result, failed = from_main_process((result, error is not None))
    if error is not None:
        raise error
    if failed:
        raise SystemExit(2)
    return result


def without_ddp(model: nn.Module) -> nn.Module:
    """Return the model without its DistributedDataParallel, if it has one."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def wrap_for_ranks(model: nn.Module, device: torch.device, **ddp_options: Any) -> nn.Module:
    """Wrap the model in DistributedDataParallel on `device`; for one process return it as it is."""
    device_ids = [comm.get_local_rank()] if device.type == "cuda" and comm.get_world_size() > 1 else None
    return create_ddp_model(model, device_ids=device_ids, **ddp_options)
