"""Arguments that would fail late are refused at once."""

import pytest
import torch

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


def test_more_gpus_than_there_are_names_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="--num-gpus is 4, but this machine shows 2"):
        launch(num_gpus=4)
