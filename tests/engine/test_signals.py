"""Ctrl-C and SIGTERM leave a checkpoint and a clear exit code."""

import os
import signal

import pytest
import torch

from sparse_detr.engine.training import train
from tests.engine.toys import ToyDetector, toy_run


class Signalled(ToyDetector):
    """A model that sends signals to its own process during the forward pass of iteration 3."""

    def __init__(self, *signals):
        super().__init__()
        self.signals, self.calls = signals, 0

    def forward(self, batch):
        self.calls += 1
        if self.calls == 4:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return super().forward(batch) if self.training else []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_the_iteration_and_writes_a_checkpoint(tmp_path, number, code, caplog):
    with caplog.at_level("WARNING", logger="sparse_detr"), pytest.raises(SystemExit) as stopped:
        train(toy_run(tmp_path, model=Signalled(number), checkpointer={"period": 100}))
    assert stopped.value.code == code
    assert torch.load(tmp_path / "model_0000003.pth", weights_only=True)["iteration"] == 3
    assert "model_0000003.pth is written; go on with --resume" in caplog.text


def test_training_resumed_after_a_signal_equals_the_uninterrupted_one(tmp_path):
    train(toy_run(tmp_path / "whole", model=Signalled()))
    with pytest.raises(SystemExit):
        train(toy_run(tmp_path / "parts", model=Signalled(signal.SIGTERM), checkpointer={"period": 100}))
    train(toy_run(tmp_path / "parts", model=Signalled()), resume_last=True)
    whole, parts = (torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("whole", "parts"))
    for name, weight in whole["model"].items():
        assert torch.equal(weight, parts["model"][name])


def test_second_ctrl_c_aborts_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("sparse_detr.engine.hooks._SAME_PRESS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(toy_run(tmp_path, model=Signalled(signal.SIGINT, signal.SIGINT), checkpointer={"period": 100}))
    assert not list(tmp_path.glob("*.pth"))


def test_one_ctrl_c_that_arrives_twice_does_not_abort(tmp_path):
    with pytest.raises(SystemExit):
        train(toy_run(tmp_path, model=Signalled(signal.SIGINT, signal.SIGINT)))


def test_signal_during_an_evaluation_does_not_wait_for_its_end(tmp_path):
    model = Signalled(signal.SIGTERM)
    batches = []
    run = toy_run(tmp_path, model=model, scores=[1.0])

    def loader():
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(9):
            batches.append(1)
            yield [{"image": torch.zeros(4), "target": torch.zeros(1)}]

    class Sized:
        def __len__(self):
            return 9

        def __iter__(self):
            return loader()

    object.__setattr__(run.evaluation_sets[0], "build_loader", Sized)
    with pytest.raises(SystemExit):
        train(run)
    assert len(batches) == 1


def test_old_signal_handlers_are_back_after_training(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    train(toy_run(tmp_path, max_iter=1))
    assert signal.getsignal(signal.SIGTERM) is before
