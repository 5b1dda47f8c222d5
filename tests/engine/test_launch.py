"""Arguments that would fail late are refused at once; a killed process is named."""

import faulthandler
import os
import signal

import pytest
import torch
import torch.multiprocessing as mp

from sparse_detr.engine.launch import start_processes
from sparse_detr.errors import UserError


def launch(**options):
    defaults = {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "args": (1, 2)}
    called = []
    start_processes(lambda *args: called.append(args), **{**defaults, **options})
    return called


def test_one_process_runs_here():
    assert launch() == [(1, 2)]


def test_several_machines_need_an_address():
    with pytest.raises(UserError, match="--dist-url tcp://"):
        launch(num_machines=2)


def test_too_many_gpus_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--num-gpus is 4, but this machine has 2"):
        launch(num_gpus=4)


def kill_second_process(rank, number):
    faulthandler.disable()  # pytest's, which would print where this process was
    if rank == 1:
        os.kill(os.getpid(), number)
    signal.pause()


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGKILL, 137, "error: process 1 was killed by SIGKILL; out of memory?"),
        (signal.SIGSEGV, 139, "error: process 1 was killed by SIGSEGV; a crash of native code?"),
    ],
)
def test_a_killed_process_is_named(monkeypatch, capsys, number, code, message):
    def launch_two(main, *arguments, args):
        mp.start_processes(kill_second_process, args=(number,), nprocs=2, start_method="fork")

    monkeypatch.setattr("sparse_detr.engine.launch.launch", launch_two)
    with pytest.raises(SystemExit) as stopped:
        launch()
    assert stopped.value.code == code
    assert message in capsys.readouterr().err
