"""The script `measure_training.py` pairs the steps of both sides and divides the time of a step among its parts."""

import time
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from tests.engine.toys import ToyDetector, toy_trainer


@pytest.fixture
def script(load_script, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")  # it imports its neighbour
    return load_script("measure_training")


def side(script, milliseconds, loss):
    return {**dict.fromkeys(script.PARTS, milliseconds), "whole": 2 * milliseconds, "wall": 9.0, "loss": loss}


def test_a_ratio_is_the_median_of_the_ratios_of_neighbouring_steps(script):
    pairs = [
        (side(script, before, 1.0), side(script, after, 1.0)) for before, after in ((9, 1), (10, 5), (30, 10), (4, 4))
    ]
    rows = script.table(pairs, warm_up=1).splitlines()
    assert rows[0] == "| CPU ms of a step | before | after | before / after |"
    assert rows[2] == "| data | 10 (4 to 30) | 5 (4 to 10) | 2.00 (1.00 to 3.00) |"
    assert "whole | 20" in rows[2 + len(script.PARTS)]
    assert rows[-1] == "Median (quartiles) of 3 steps. All 4 losses are identical."


def test_different_losses_are_told_with_those_of_the_warm_up(script):
    pairs = [(side(script, 1, 2.0), side(script, 1, 2.02)), (side(script, 1, 1.0), side(script, 1, 1.1))]
    assert "differ by 1e-02 in the first step and by at most 1e-01 in 2 steps" in script.compare_losses(pairs)


class SlowDetector(ToyDetector):
    """A toy whose backbone and criterion take a known share of the time."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.backbone = Busy(self.backbone, 0.03)
        self.criterion = Busy(nn.Identity(), 0.02)

    def forward(self, batch):
        images = torch.stack([item["image"] for item in batch])
        predicted = self.head(self.backbone(images))
        return {"loss_a": self.criterion(predicted).square().mean()}


class Busy(nn.Module):
    def __init__(self, module, seconds):
        super().__init__()
        self.module, self.seconds = module, seconds

    def forward(self, x):
        end = time.thread_time() + self.seconds
        while time.thread_time() < end:
            pass
        return self.module(x)


def test_the_parts_of_a_step_sum_to_the_whole(script):
    trainer = toy_trainer(SlowDetector())
    clock = script.Clock(trainer)
    with EventStorage() as storage:
        trainer.storage = storage
        numbers = clock.step(trainer)
    assert sum(numbers[part] for part in script.PARTS) == pytest.approx(numbers["whole"])
    assert 30 <= numbers["backbone"] < 45
    assert 20 <= numbers["losses"] < 35
    assert all(numbers[part] > 0 for part in ("data", "transformer", "backward", "optimizer"))
    assert numbers["loss"] == pytest.approx(storage.latest()["total_loss"][0])


def test_random_batches_are_the_same_for_both_sides_and_have_true_boxes(script):
    one, two = (next(script.random_batches(2, 40, 60)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        assert a["instances"].gt_boxes.nonempty().all()
        assert a["image"].shape == (3, 40, 60)


def test_a_commit_is_asked_for(script, capsys):
    with pytest.raises(SystemExit):
        script.parse([])
    assert "name a commit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::_slow_conv2d_backward", "convolutions"),
        ("aten::mm", "matrix products"),
        ("sparse_detr::deformable_attention_backward", "deformable attention"),
        ("aten::bernoulli_", "random numbers of dropout"),
        ("aten::mul", "all else"),
    ],
)
def test_an_operation_has_a_kind(script, name, kind):
    assert script.kind_of_operation(name) == kind
