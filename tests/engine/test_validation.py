"""The losses of the evaluation data are those of the model as it is evaluated, and change nothing of the training."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from sparse_detr.data.loader import loader_with_targets
from sparse_detr.engine.training import evaluate_only, train
from sparse_detr.engine.validation import mean_losses, validation_losses
from sparse_detr.errors import UserError
from tests.engine.ranks import PickImage, build_test_loader
from tests.engine.test_resume import assert_same_checkpoints, final, train_interrupted
from tests.engine.toys import ToyDetector, ToyMapper, ToyWithLosses, toy_run, toy_test_loader
from tests.modeling.tiny import build, picture


def run_of(folder, *, model=None, loader=toy_test_loader, **settings):
    defaults = {"scores": [1.0] * 8, "validation_loss": True}
    run = toy_run(folder, model=model or ToyWithLosses(), **{**defaults, **settings})
    return replace(run, evaluation_sets=[replace(part, build_loader=loader) for part in run.evaluation_sets])


def test_a_batch_counts_by_its_boxes_and_at_least_once():
    batches = [(1, {"a": 2.0, "b": 10.0}), (0, {"a": 6.0, "b": 20.0}), (3, {"a": 4.0, "b": 0.0})]
    # a: (1 * 2 + 1 * 6 + 3 * 4) / 5, b: (1 * 10 + 1 * 20 + 3 * 0) / 5
    assert mean_losses(batches) == {"total_loss": 10.0, "a": 4.0, "b": 6.0}
    assert mean_losses([]) == {}


def test_a_loss_that_some_batches_lack_is_the_mean_of_the_others():
    assert mean_losses([(2, {"a": 1.0}), (2, {"a": 3.0, "b": 5.0})]) == {"total_loss": 7.0, "a": 2.0, "b": 5.0}


class Constant(nn.Module):
    """Has losses that can be computed by hand: weight times the number of the image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def losses(self, batch, *, denoising=True):
        assert not self.training
        assert not denoising
        numbers = torch.tensor([float(item["image_id"]) for item in batch])
        return {"loss_a": self.weight * numbers.mean(), "loss_b": self.weight * 0 + 1}


@pytest.mark.parametrize(("batch_size", "expected"), [(1, (1 * 0 + 1 * 2 + 3 * 4) / 5), (2, (1 * 1 + 3 * 4) / 4)])
def test_losses_are_the_mean_over_the_images_solved_by_hand(tmp_path, batch_size, expected):
    run = run_of(tmp_path, loader=lambda: toy_test_loader((1, 0, 3), batch_size=batch_size))
    model = Constant().train()
    found = validation_losses(run, model)
    assert found == pytest.approx({"total_loss": expected + 1, "loss_a": expected, "loss_b": 1.0}, rel=1e-6)
    assert model.training


def test_a_number_of_batches_takes_images_at_equal_distances(tmp_path):
    run = run_of(tmp_path, validation_loss=2, loader=lambda: toy_test_loader([1] * 8))
    assert validation_losses(run, Constant())["loss_a"] == pytest.approx(2.0 * (0 + 4) / 2)
    assert [item["image_id"] for batch in loader_with_targets(toy_test_loader([1] * 7), 3) for item in batch] == [
        0,
        2,
        4,
    ]
    assert len(loader_with_targets(toy_test_loader([1] * 7, batch_size=2), 99)) == 4


def test_images_that_cannot_be_read_are_left_out(tmp_path):
    run = run_of(tmp_path, loader=lambda: toy_test_loader((1, 1, 1), damaged=2))
    assert validation_losses(run, Constant())["loss_a"] == pytest.approx(2.0 * (0 + 1) / 2)


def test_the_loader_of_the_evaluation_itself_stays_without_targets():
    loader = toy_test_loader()
    loader_with_targets(loader)
    assert loader.dataset.mapper.is_train is False
    assert "instances" not in next(iter(loader))[0]


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}, {"validation_loss": 2}])
def test_training_is_the_same_with_and_without_to_the_last_bit(tmp_path, options):
    for name, validation_loss in (("with", True), ("without", False)):
        torch.manual_seed(1)
        train(run_of(tmp_path / name, **{"validation_loss": validation_loss, **options}))
    assert_same_checkpoints(final(tmp_path / "with"), final(tmp_path / "without"))


def test_a_resumed_training_with_validation_losses_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    settings = {"best_metric": "validation/total_loss"}
    torch.manual_seed(1)
    train(run_of(tmp_path / "whole", **settings))
    torch.manual_seed(1)
    train_interrupted(run_of(tmp_path / "parts", **settings), monkeypatch, before=5)
    torch.manual_seed(99)
    train(run_of(tmp_path / "parts", **settings), resume_last=True)
    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))
    assert (tmp_path / "whole" / "model_best.json").read_text() == (tmp_path / "parts" / "model_best.json").read_text()


def metrics_of(folder, name):
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def test_losses_are_written_beside_the_scores(tmp_path):
    results = train(run_of(tmp_path, log_period=1, ema_decay=0.9))
    assert set(results) == {"bbox", "validation", "ema/bbox", "ema/validation"}
    assert set(results["validation"]) == {"total_loss", "loss_a", "loss_b"}
    assert metrics_of(tmp_path, "validation/total_loss")[-1] == pytest.approx(results["validation"]["total_loss"])
    assert metrics_of(tmp_path, "ema/validation/loss_a")[-1] == pytest.approx(results["ema/validation"]["loss_a"])
    assert results["validation"] != results["ema/validation"]


def test_the_best_model_is_that_of_the_least_loss(tmp_path):
    train(run_of(tmp_path, log_period=1, best_metric="validation/total_loss"))
    best = json.loads((tmp_path / "model_best.json").read_text())
    assert best["value"] == pytest.approx(min(metrics_of(tmp_path, "validation/total_loss")))


def test_early_stopping_can_watch_the_loss(tmp_path):
    stopping = {"patience": 1, "metric": "validation/total_loss", "min_improvement": 1e9}
    train(run_of(tmp_path, early_stopping=stopping))
    assert final(tmp_path)["iteration"] == 3


def test_a_checkpoint_is_evaluated_with_its_losses(tmp_path):
    results = train(run_of(tmp_path))
    assert evaluate_only(run_of(tmp_path), resume_last=True)["validation"] == results["validation"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": []}, "no evaluation data for a validation loss; give some, or set train.validation_loss=False"),
        ({"model": ToyDetector()}, "ToyDetector has losses in training mode only"),
        ({"loader": lambda: [[]]}, "need dataloader.test by sparse_detr.data.loader.build_test_loader"),
        (
            {"validation_loss": False, "early_stopping": {"patience": 1, "metric": "validation/total_loss"}},
            "watches validation/total_loss, which is not computed; add train.validation_loss=True",
        ),
    ],
)
def test_a_validation_loss_that_cannot_be_computed_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        train(run_of(tmp_path, **options))


def detector_run(folder, samples, batch_size):
    records = [{"image_id": index} for index in range(len(samples))]
    loader = lambda: build_test_loader(dataset=records, mapper=PickImage(samples), batch_size=batch_size)  # noqa: E731
    return run_of(folder, loader=loader)


SAMPLES = [picture(64, 96, boxes=((0.1, 0.1, 0.6, 0.5),)), picture(64, 96, seed=1)]


@pytest.mark.parametrize("name", ["sparse", "dino", "focus"])
def test_losses_of_single_images_are_those_of_one_batch(tmp_path, name):
    model = build(name).train()
    one, joint = (validation_losses(detector_run(tmp_path, SAMPLES, size), model) for size in (1, 2))
    with torch.no_grad():
        direct = model.eval().losses(SAMPLES, denoising=False)
    assert joint == pytest.approx(
        {"total_loss": float(sum(direct.values())), **{k: float(v) for k, v in direct.items()}}
    )
    for loss in ("loss_class", "loss_bbox", "loss_giou"):
        assert one[loss] == pytest.approx(joint[loss], rel=1e-4)


def test_denoising_is_left_out_and_random_numbers_stay(tmp_path):
    model, run = build("dino").train(), detector_run(tmp_path, SAMPLES, 2)
    state = torch.get_rng_state()
    first, second = (validation_losses(run, model) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second
    assert not any("dn" in name for name in first)
    assert any("dn" in name for name in model.losses(SAMPLES))


def test_batch_norms_keep_their_statistics_and_dropout_is_off(tmp_path):
    model = ToyWithLosses()
    model.backbone = nn.Sequential(model.backbone, nn.BatchNorm1d(8))
    model.backbone.weight = model.backbone[0].weight
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (validation_losses(run_of(tmp_path), model) for _ in range(2))
    assert one == other
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_log_says_the_loss(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    caplog.set_level(logging.INFO)
    validation_losses(run_of(tmp_path), Constant())
    assert "validation loss: 3.8" in caplog.text


def test_a_mapper_without_targets_is_refused():
    loader = toy_test_loader()
    loader.dataset.mapper = lambda record: record
    with pytest.raises(UserError, match="with a mapper that has is_train"):
        loader_with_targets(loader)
    assert ToyMapper.is_train is False
