"""A training that was stopped and resumed is the training that was never stopped."""

import json
import logging

import pytest
import torch

from sparse_detr.engine.train import evaluate_only, train
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.weights import load_weights
from sparse_detr.errors import UserError
from tests.engine.toys import ToyDetector, toy_run

EMA = {"ema_decay": 0.9}
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Interruption(RuntimeError):
    pass


def train_interrupted(run, monkeypatch, *, before):
    """Train until the power fails before an iteration."""
    run_step = Trainer.run_step

    def failing(self):
        if self.iter == before:
            raise Interruption
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", failing)
    with pytest.raises(Interruption):
        train(run)
    monkeypatch.setattr(Trainer, "run_step", run_step)


def assert_same_checkpoints(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_same_checkpoints(value, other[key])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for a, b in zip(value, other[key], strict=True):
                assert_same_checkpoints(a, b)
        elif key != "numpy":  # a tuple with a tensor
            assert value == other[key], key


def final(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("settings", [{}, EMA, {"accumulate": 2}, {"precision": "fp16"}, {"precision": "bf16"}])
def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit(tmp_path, monkeypatch, settings, device):
    settings = {**settings, "device": device}
    scores = [1.0, 2.0, 3.0, 4.0]
    torch.manual_seed(1)
    train(toy_run(tmp_path / "whole", scores=scores, **settings))

    torch.manual_seed(1)
    train_interrupted(toy_run(tmp_path / "parts", scores=scores, **settings), monkeypatch, before=5)
    torch.manual_seed(99)
    train(toy_run(tmp_path / "parts", scores=scores[2:], **settings), resume_last=True)

    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


def test_evaluating_does_not_change_the_training(tmp_path):
    for name, scores in (("with", [1.0] * 4), ("without", [])):
        torch.manual_seed(1)
        train(toy_run(tmp_path / name, scores=scores))
    assert_same_checkpoints(final(tmp_path / "with")["model"], final(tmp_path / "without")["model"])


def test_best_score_survives_a_resume(tmp_path, monkeypatch):
    train_interrupted(toy_run(tmp_path, scores=[1.0, 9.0]), monkeypatch, before=5)
    best = torch.load(tmp_path / "model_best.pth", weights_only=True)

    train(toy_run(tmp_path, scores=[5.0, 6.0]), resume_last=True)

    assert json.loads((tmp_path / "model_best.json").read_text()) == {"metric": "bbox/AP", "value": 9.0, "iteration": 3}
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == best["iteration"] == 3


def test_fresh_training_in_an_old_folder_forgets_the_old_best_score(tmp_path):
    train(toy_run(tmp_path, scores=[9.0] * 4))
    train(toy_run(tmp_path, scores=[1.0, 2.0, 3.0, 4.0]))
    assert json.loads((tmp_path / "model_best.json").read_text())["value"] == 4.0


def test_the_best_model_is_not_where_a_training_resumes(tmp_path, monkeypatch):
    train_interrupted(toy_run(tmp_path, scores=[1.0, 9.0]), monkeypatch, before=5)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"


def test_average_of_weights_is_evaluated_under_its_own_name(tmp_path):
    results = train(toy_run(tmp_path, scores=[float(i) for i in range(8)], **EMA))
    assert results == {"bbox": {"AP": 6.0}, "ema/bbox": {"AP": 7.0}}


def test_averaged_weights_of_a_checkpoint_are_evaluated(tmp_path):
    train(toy_run(tmp_path, **EMA))
    results = evaluate_only(toy_run(tmp_path, scores=[1.0, 2.0], **EMA), resume_last=True)
    assert results == {"bbox": {"AP": 1.0}, "ema/bbox": {"AP": 2.0}}


def test_checkpoint_without_averaged_weights_is_evaluated_without(tmp_path):
    train(toy_run(tmp_path))
    results = evaluate_only(toy_run(tmp_path, scores=[1.0, 2.0], **EMA), resume_last=True)
    assert results == {"bbox": {"AP": 1.0}}


def test_average_of_weights_follows_its_definition(tmp_path):
    train(toy_run(tmp_path, **EMA, max_iter=3, checkpointer={"period": 1}))
    files = [torch.load(tmp_path / f"model_{i:07d}.pth", weights_only=True) for i in range(3)]
    weights = [file["model"]["head.weight"] for file in files]
    expected = 0.9 * (0.9 * weights[0] + 0.1 * weights[1]) + 0.1 * weights[2]
    torch.testing.assert_close(files[2]["ema"]["module.head.weight"], expected)


def test_truncated_checkpoint_is_a_clear_error(tmp_path):
    train(toy_run(tmp_path))
    file = tmp_path / "model_final.pth"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(UserError, match="model_final.pth .* truncated"):
        train(toy_run(tmp_path), resume_last=True)


def test_weights_of_another_model_are_refused(tmp_path):
    model = ToyDetector()
    model.head = torch.nn.Linear(8, 3)
    train(toy_run(tmp_path, model=model, max_iter=2))
    with pytest.raises(UserError, match="head.weight: file \\[3, 8\\], model \\[1, 8\\]"):
        train(toy_run(tmp_path, init_checkpoint=str(tmp_path / "model_final.pth")))


class ToyWithClasses(ToyDetector):
    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.class_embed = torch.nn.Linear(8, num_classes)

    def forward(self, batch):
        return {**super().forward(batch), "loss_class": self.class_embed.weight.square().sum()}


def test_fine_tuning_skips_and_lists_the_rows_of_other_classes(tmp_path, caplog, monkeypatch):
    train(toy_run(tmp_path, model=ToyWithClasses(num_classes=5), max_iter=2))
    model = ToyWithClasses(num_classes=2)
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    load_weights(model, str(tmp_path / "model_final.pth"), skip_other_classes=True)
    assert "these rows of it are skipped: class_embed.weight (5, 8), class_embed.bias (5,)" in caplog.text
    assert torch.equal(model.head.weight, final(tmp_path)["model"]["head.weight"])


def test_resuming_with_another_number_of_classes_names_both(tmp_path):
    train(toy_run(tmp_path, model=ToyWithClasses(num_classes=5), max_iter=2))
    with pytest.raises(UserError, match="the checkpoint has 5 classes and the model 2"):
        train(toy_run(tmp_path, model=ToyWithClasses(num_classes=2)), resume_last=True)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [("nowhere.pth", "check the path"), ("mobilenet_v2_imagenet.pth", "python -m sparse_detr.data.sample")],
)
def test_a_checkpoint_that_is_not_there_is_named_with_the_remedy(path, remedy):
    with pytest.raises(UserError, match=f"no checkpoint '{path}'.*{remedy}"):
        load_weights(ToyWithClasses(num_classes=2), path, skip_other_classes=True)
