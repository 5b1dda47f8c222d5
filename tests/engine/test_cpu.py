"""Waiting threads and freed memory."""

import resource
import subprocess
import sys

import pytest
import torch

from sparse_detr._threads import SPIN_ROUNDS, WAIT_VARIABLES, describe_waiting, let_waiting_threads_sleep
from sparse_detr.engine import cpu


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.usefixtures("no_torch")
def test_a_waiting_thread_sleeps_soon_unless_the_user_has_chosen():
    environment = {}
    assert let_waiting_threads_sleep(environment)
    assert environment == {"GOMP_SPINCOUNT": str(SPIN_ROUNDS)}
    for name in WAIT_VARIABLES:
        chosen = {name: "1"}
        assert not let_waiting_threads_sleep(chosen)
        assert chosen == {name: "1"}


def test_nothing_is_set_after_torch_is_loaded_and_the_log_says_so():
    environment = {}
    assert not let_waiting_threads_sleep(environment)
    assert not environment
    assert "loaded first" in describe_waiting(environment)


def test_the_package_sets_it_before_torch_is_loaded():
    code = "import os, sys; import sparse_detr; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == str(SPIN_ROUNDS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_kept_memory_is_not_cleared_again_by_the_system(monkeypatch):
    """In a process of its own, since the setting cannot be taken back."""
    code = """if True:
        import resource, torch
        from sparse_detr.engine.cpu import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                torch.ones(16_000_000)  # above 32 MiB, the most that glibc keeps
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        faults(); before = faults()
        assert keep_freed_memory()
        after = [faults() for _ in range(8)]  # small blocks take places in freed large ones, until there are enough
        print(before, after[-1])
    """
    environment = {"PATH": "/usr/bin", "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, shown.stdout.split())
    assert before > 4 * 16_000_000 * 4 / resource.getpagesize() / 2
    assert after < before / 10


def test_an_allocator_that_the_user_has_set_up_is_left_alone(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not cpu.keep_freed_memory()


@pytest.mark.parametrize(("load", "threads", "expected"), [(1.9, 2, 1.9), (0.3, 2, 0.0), (1.9, 1, 0.0)])
def test_the_load_of_others_matters_if_the_threads_lack_cores(monkeypatch, load, threads, expected):
    monkeypatch.setattr(cpu.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert cpu.other_load() == expected


def test_other_devices_need_no_preparation(monkeypatch, caplog):
    monkeypatch.setattr(cpu, "keep_freed_memory", lambda: pytest.fail("not on a GPU"))
    cpu.set_up_cpu("cuda:0")
    assert not caplog.records
