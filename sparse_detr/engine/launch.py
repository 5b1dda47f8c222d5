"""Start the processes of a training with Detectron2's `launch`, or use those that torchrun has started."""

import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch
from detectron2.utils import comm

from sparse_detr.errors import UserError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def start_processes(
    main: Callable[..., None],
    *,
    num_gpus: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple[Any, ...],
) -> None:
    """Call `main(*args)` in every process of the training.

    Without a GPU, `num_gpus` processes share the CPU and communicate by gloo.
    """
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        _join_torchrun()
        main(*args)
        dist.destroy_process_group()
        return
    _check_processes(num_gpus, num_machines, dist_url)
    if num_gpus * num_machines > 1:
        _pass_signals_on()
    try:
        launch(_limit_threads_and_run, num_gpus, num_machines, machine_rank, dist_url, args=(main, num_gpus, args))
    except mp.ProcessExitedException as error:
        if error.exit_code < 0:  # else the process itself has printed the reason
            print(f"error: {_say_who_was_killed(error)}", file=sys.stderr)
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)


def _say_who_was_killed(error: mp.ProcessExitedException) -> str:
    guess = {
        "SIGKILL": "out of memory? Lower the batch size, the image sizes or the number of workers",
        "SIGTERM": "a person or a program ended it",
        "SIGINT": "a person or a program ended it",
    }.get(str(error.signal_name), "a crash of native code?")
    return f"process {error.error_index} was killed by {error.signal_name}; {guess}; the last checkpoint is kept"


def _check_processes(num_gpus: int, num_machines: int, dist_url: str) -> None:
    if num_machines > 1 and dist_url == "auto":
        raise UserError("several machines need --dist-url tcp://<address of machine 0>:<free port>, the same on all")
    if torch.cuda.is_available() and num_gpus > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus is {num_gpus}, but this machine has {torch.cuda.device_count()}; give at most that"
        )


def _join_torchrun() -> None:
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    comm.create_local_process_group(local_size)


def _limit_threads_and_run(main: Callable[..., None], num_processes: int, args: tuple[Any, ...]) -> None:
    if num_processes > 1 and not torch.cuda.is_available():
        torch.set_num_threads(max(torch.get_num_threads() // num_processes, 1))
    main(*args)


def _pass_signals_on() -> None:
    """Pass signals on to the training processes, which decide what to do; this process only waits for them."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in mp.active_children():
            os.kill(process.pid, number)

    for number in STOP_SIGNALS:
        signal.signal(number, pass_on)
