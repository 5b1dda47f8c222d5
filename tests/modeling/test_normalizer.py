"""Normalisers of losses, in one process and among several."""

import pytest
import torch
import torch.distributed as dist

from sparse_detr.modeling.training.normalizer import alone, mean_over_processes


@pytest.fixture
def two_processes(monkeypatch):
    """Pretend that there is a second process, which has no boxes."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda count: count)


def test_a_count_is_averaged_over_processes_and_at_least_one(two_processes):
    assert mean_over_processes(torch.tensor(6.0)) == 3
    assert mean_over_processes(torch.tensor(0.0)) == 1


def test_a_process_alone_asks_no_other(two_processes, monkeypatch):
    def wait_for_ever(count):
        raise AssertionError("a process alone must not exchange")

    monkeypatch.setattr(dist, "all_reduce", wait_for_ever)
    with alone():
        assert mean_over_processes(torch.tensor(6.0)) == 6
    with pytest.raises(AssertionError):
        mean_over_processes(torch.tensor(6.0))
