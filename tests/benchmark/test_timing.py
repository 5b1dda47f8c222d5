"""Times by part: each moment counts once, for the innermost part that runs."""

import itertools

import pytest
import torch
from torch import nn

from sparse_detr.benchmark import timing
from sparse_detr.benchmark.timing import PartTimer, percentile, rotated


class Inner(nn.Module):
    def forward(self, x):
        return x


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.after = Inner(), Inner()

    def forward(self, x):
        return self.after(self.inner(x))


@pytest.fixture
def steps(monkeypatch):
    """A clock that advances by one second more at each look: 0, 1, 3, 6, 10, ..."""
    looks = itertools.accumulate(itertools.count())
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(looks))


def test_a_part_in_a_part_counts_for_itself_alone(steps):
    model = Outer()
    timer = PartTimer({"outer": [model], "inner": [model.inner]})
    times = timer(lambda: model(1))
    # looks: start 0, enter outer 1, enter inner 3, leave inner 6, leave outer 10, end 15
    assert times == {"outer": 1e3 * (3 - 1 + 10 - 6), "inner": 1e3 * (6 - 3), "rest": 1e3 * (1 + 15 - 10)}
    assert sum(times.values()) == 15e3


def test_a_part_of_two_modules_gets_the_time_of_both(steps):
    model = Outer()
    times = PartTimer({"both": [model.inner, model.after]})(lambda: model(1))
    # start 0, 1 to 3 inner, 6 to 10 after, end 15
    assert times == {"both": 1e3 * (2 + 4), "rest": 1e3 * (1 + 3 + 5)}


def test_the_parts_sum_to_the_whole_and_leave_no_hook():
    model = Outer()
    timer = PartTimer({"outer": [model], "inner": [model.inner]})
    start = timing.time.perf_counter()
    times = timer(lambda: model(torch.ones(3)))
    assert 0 < sum(times.values()) <= 1e3 * (timing.time.perf_counter() - start)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_in_a_part_leaves_no_hook_and_the_timer_usable():
    model = Outer()
    timer = PartTimer({"inner": [model.inner]})
    with pytest.raises(ZeroDivisionError):
        timer(lambda: model(1) / 0)
    assert not model.inner._forward_hooks
    assert set(timer(lambda: model(1))) == {"inner", "rest"}


def test_percentiles_lie_between_the_values():
    assert percentile([3, 1, 2], 50) == 2
    assert percentile([1, 2, 3, 4], 50) == 2.5
    assert percentile(range(11), 90) == 9
    assert percentile([10, 20], 90) == pytest.approx(19)
    assert percentile([7], 90) == 7


def test_the_order_rotates():
    assert [rotated("abc", turn) for turn in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]
