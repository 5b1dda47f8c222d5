"""All contestants run in turn on the same fresh batches, and everything about it is recorded."""

import json

import pytest
import torch

from sparse_detr.analysis import memory
from sparse_detr.benchmark.contestants import Contestant
from sparse_detr.benchmark.images import ImageStream
from sparse_detr.benchmark.machine import ReferenceKernel
from sparse_detr.benchmark.measure import make_record, measure_memory, measure_times
from sparse_detr.benchmark.report import as_csv, as_markdown, file_stem
from sparse_detr.engine.evaluate import WithBudget


class Recorder(torch.nn.Module):
    """A detector that notes its batches; its part is a linear layer."""

    def __init__(self, name, calls):
        super().__init__()
        self.name, self.calls, self.layer, self.num_classes = name, calls, torch.nn.Linear(2, 2), 3

    def forward(self, batch, budget=None):
        self.calls.append((self.name, [image["file_name"] for image in batch], budget))
        return self.layer(torch.ones(len(batch), 2))


def load(record):
    height = {"a": 40, "b": 64, "c": 64}[record["file_name"]]
    return {**record, "image": torch.zeros(3, height, 50, dtype=torch.uint8)}


def contestants(calls):
    parts = {"layer": ("layer",)}
    second = Contestant("y", "a note", Recorder("y", calls), parts, budget=0.5)
    return [Contestant("x", "", Recorder("x", calls), parts), second]


def tiny_kernel(device):
    kernel = ReferenceKernel.__new__(ReferenceKernel)
    kernel.milliseconds = lambda: 5.0
    return kernel


@pytest.fixture
def measured():
    calls = []
    images = ImageStream(["a", "b", "c"], load)
    options = {"batch_sizes": [1, 2], "rounds": 2, "device": "cpu"}
    result = measure_times(contestants(calls), images, load_before=0.25, make_kernel=tiny_kernel, **options)
    return result, calls, images, options


def test_models_run_in_turn_on_the_same_batches_and_the_order_rotates(measured):
    _, calls, _, _ = measured
    warm_up, first, second = calls[:4], calls[4:8], calls[8:]
    assert warm_up == [("x", ["a"], None), ("y", ["a"], 0.5), ("x", ["b", "c"], None), ("y", ["b", "c"], 0.5)]
    assert first == [("y", ["a"], 0.5), ("x", ["a"], None), ("y", ["b", "c"], 0.5), ("x", ["b", "c"], None)]
    assert [name for name, _, _ in second] == ["x", "y", "x", "y"]


def test_the_warm_up_does_not_count(measured):
    result, _, _, _ = measured
    assert {name: {size: len(turns) for size, turns in sizes.items()} for name, sizes in result.times.items()} == {
        "x": {1: 2, 2: 2},
        "y": {1: 2, 2: 2},
    }
    assert set(result.times["x"][1][0]) == {"layer", "rest"}
    assert result.sizes == [(40, 50), (64, 50), (64, 50)] * 2
    assert result.padding == [0, 0] * 2
    assert result.reference_ms == [5.0] * 3  # before both rounds that count, and at the end
    assert result.load["before"] == 0.25


def test_padding_is_the_share_of_a_batch_that_is_no_image():
    images = ImageStream(["a", "b"], load)
    result = measure_times(
        contestants([]), images, batch_sizes=[2], rounds=1, device="cpu", load_before=0, make_kernel=tiny_kernel
    )
    assert result.padding == [pytest.approx(1 - (40 + 64) / (2 * 64))]


def test_a_busy_run_is_marked_in_the_record(measured):
    result, calls, images, options = measured
    common = {"config": "configs/tiny.py", "weights": None, "images": images, "peaks": {}}
    flops = {"x": {"layer": 1.0, "rest": 0.0}, "y": None}
    record = make_record(contestants(calls), result, gigaflops=flops, **common, **options)
    assert record["disturbance"].startswith("other processes used 0.25 of ")
    assert record == json.loads(json.dumps(record))
    assert record["protocol"]["sizes"] == [[40, 50], [64, 50]]
    assert record["protocol"]["timed_images"] == 6
    assert record["contestants"][1] | {"milliseconds": None} == {
        "name": "y",
        "note": "a note",
        "parameters": 6,
        "gigaflops": None,
        "peak_mib": {},
        "scores": None,
        "milliseconds": None,
    }
    assert file_stem(record).startswith("benchmark_tiny_cpu-")
    assert as_csv(record).count("\n") == 1 + 2 * 2 * 3
    assert as_markdown(record).startswith("**Not a quiet machine: other processes used 0.25 of ")


class Hungry(torch.nn.Module):
    def forward(self, batch):  # 64 MiB an image: other threads of the tests map one or two in the meantime
        return torch.ones(len(batch), 2**24)


@pytest.mark.skipif(not memory.can_measure("cpu"), reason="peak memory needs Linux and glibc")
def test_peak_memory_is_of_the_call_beyond_the_model():
    hungry = Contestant("hungry", "", Hungry(), {})
    found = measure_memory([hungry], ImageStream(["a"], load), [1, 3], "cpu")
    assert found["hungry"] == {1: pytest.approx(64, rel=1 / 16), 3: pytest.approx(192, rel=1 / 48)}


def test_the_evaluated_model_has_the_budget_that_was_timed():
    calls = []
    _, second = contestants(calls)
    model = WithBudget(second.model, second.budget).eval()
    model([load({"file_name": "a"})])
    assert calls == [("y", ["a"], 0.5)]
    assert (model.num_classes, model.class_channels) == (3, None)
    assert model.model is second.model
