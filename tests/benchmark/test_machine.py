"""The load by other processes and the drift of a fixed kernel decide whether the machine was quiet."""

import itertools
import subprocess
import sys
import time

import pytest

from sparse_detr.benchmark.machine import CpuUse, ReferenceKernel, busy_limit, drift, find_disturbance

BURN = "import time\nwhile time.process_time() < 0.6: pass"


def test_the_load_is_what_all_processes_used_without_this_one():
    before, after = CpuUse(clock=10, busy=100, own=30), CpuUse(clock=14, busy=107, own=31)
    assert after.others_since(before) == (7 - 1) / 4
    assert CpuUse(clock=14, busy=101, own=31.02).others_since(before) == 0  # counters move in steps
    assert before.others_since(before) == 0


def test_a_busy_child_process_counts_as_load():
    before = CpuUse.now()
    subprocess.run([sys.executable, "-S", "-c", BURN], check=True)
    after = CpuUse.now()
    assert after.others_since(before) * (after.clock - before.clock) > 0.5


def test_the_work_of_this_process_is_its_own():
    before = CpuUse.now()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert CpuUse.now().own - before.own == pytest.approx(0.3, abs=0.05)


def test_a_busy_machine_is_named_with_its_load():
    assert find_disturbance({"before": 0.0, "during": 0.1}, cpus=2) is None
    found = find_disturbance({"before": 0.02, "during": 0.97}, cpus=2)
    assert found == "other processes used 0.97 of 2 CPUs during the measurement (at most 0.10 is quiet)"


def test_the_limit_grows_with_the_machine():
    assert (busy_limit(1), busy_limit(2), busy_limit(64)) == (0.1, 0.1, pytest.approx(3.2))
    assert find_disturbance({"during": 3.0}, cpus=64) is None
    assert find_disturbance({"during": 3.0}, cpus=4) is not None


def test_drift_is_the_slow_end_against_the_fastest():
    assert drift([10.0] * 5) == 0
    assert drift([10.0, 11.0]) == pytest.approx(0.09)  # the 90th percentile is 10.9
    assert drift([8.0] * 19 + [80.0]) == 0  # one hiccup in twenty is no throttling


def test_a_throttled_kernel_is_refused():
    """A stand-in clock: the first kernel takes 5 ms, later ones 8 ms."""
    ticks = itertools.chain([0.0, 0.005] * 10, [0.0, 0.008] * 1000)
    kernel = ReferenceKernel(clock=lambda: next(ticks))
    times = [kernel.milliseconds() for _ in range(10)]
    assert (times[0], times[-1]) == (pytest.approx(5), pytest.approx(8))
    found = find_disturbance({"before": 0, "during": 0}, times, cpus=2)
    assert found.startswith("a fixed kernel became 60% slower during the measurement (at most 10% is steady)")
    assert find_disturbance({"before": 0, "during": 0}, [5.0, 5.2], cpus=2) is None


def test_both_reasons_are_named():
    found = find_disturbance({"before": 1.0, "during": 0}, [5.0, 8.0, 8.0], cpus=2)
    assert "used 1.00 of 2 CPUs before the measurement" in found
    assert " and a fixed kernel became 60% slower" in found
