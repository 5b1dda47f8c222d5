"""Train the toy model in processes that are killed, at an iteration or in the middle of a write."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.utils.env import seed_all_rng

from sparse_detr import files
from sparse_detr.engine.training import train
from tests.engine.toys import toy_run

EXIT_AFTER_ERROR = 70
SCORES = [3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0]


def in_child(work: Callable[[], object]) -> int:
    """Do `work` in a forked process; return its exit status, negative for the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = EXIT_AFTER_ERROR
        try:
            work()
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_as_command(folder: Path) -> None:
    """Start the training once, or resume it if the folder holds a checkpoint."""
    seed_all_rng(1)
    train(toy_run(folder, max_iter=16, scores=SCORES, ema_decay=0.9, best_metric="ema/bbox/AP"), resume_last=True)


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_write(number: int, share: float) -> None:
    """Kill this process in its `number`th write of a file, when `share` of the bytes are written (above 1: renamed)."""
    count = 0
    fill, flush_folder = files._fill, files._flush_folder

    def half(file, write):
        nonlocal count
        count += 1
        fill(file, write)
        if count == number and share <= 1:
            file.truncate(int(file.tell() * share))
            kill_self()

    def renamed(folder):
        flush_folder(folder)
        if count == number:
            kill_self()

    files._fill, files._flush_folder = half, renamed


def die_before_iteration(number: int) -> None:
    from sparse_detr.engine.trainer import Trainer

    run_step = Trainer.run_step

    def step(self):
        if self.iter == number:
            kill_self()
        run_step(self)

    Trainer.run_step = step


def train_until_killed(folder: Path, chance: random.Random, *, in_write: bool) -> int:
    """Start or resume the training and kill it at a random moment, unless it ends before; return the exit status."""

    def work() -> None:
        if in_write:
            die_in_write(chance.randint(1, 12), chance.choice([0.0, 0.5, 1.0, 2.0]))
        else:
            die_before_iteration(chance.randrange(16))
        train_as_command(folder)

    chance.random()  # another place at each call: the child's draws are lost with it
    return in_child(work)


def weights_and_state(folder: Path) -> dict:
    return torch.load(folder / "model_final.pth", weights_only=True)
