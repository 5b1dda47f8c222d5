"""A resumed training runs with the settings of its config, not with those of the checkpoint."""

import dataclasses
import logging

import pytest
import torch
from detectron2.solver.lr_scheduler import LRMultiplier
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf

from sparse_detr.engine.training import train
from sparse_detr.errors import UserError
from tests.engine.toys import ToyDetector, toy_run

SCHEDULES = {
    "fvcore": lambda optimizer: LinearParamScheduler(1.0, 0.1),
    "detectron2": lambda optimizer: LRMultiplier(optimizer, LinearParamScheduler(1.0, 0.1), 8),
}


@pytest.fixture
def listen(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    return caplog


class Watched(ToyDetector):
    """Records the optimiser's settings of head.weight at each iteration."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.seen = []

    def forward(self, batch):
        for group in self.optimizer.param_groups:
            if any(parameter is self.head.weight for parameter in group["params"]):
                self.seen.append({key: group[key] for key in ("lr", "weight_decay", "betas") if key in group})
        return super().forward(batch)


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), **{"lr": 0.1, **options})


def two_groups(model, *, factor):
    groups = [{"params": model.backbone.parameters(), "lr": 0.1 * factor}, {"params": model.head.parameters()}]
    return torch.optim.AdamW(groups, lr=0.1)


def run_of(folder, optimizer=adamw, schedule="fvcore", **settings):
    model = Watched()

    def build(model):
        model.optimizer = optimizer(model)
        return model.optimizer

    run = toy_run(folder, model=model, **settings)
    return dataclasses.replace(run, build_optimizer=build, build_schedule=SCHEDULES[schedule]), model


def train_half(folder, **options):
    train(run_of(folder, max_iter=8, **options)[0])
    (folder / "model_final.pth").unlink()
    for name in ("model_0000005.pth", "model_0000007.pth"):
        (folder / name).unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")


def weights(folder):
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_unchanged_resume_is_exact_and_logs_no_settings(tmp_path, schedule, listen):
    train(run_of(tmp_path / "whole", schedule=schedule)[0])
    train_half(tmp_path / "parts", schedule=schedule)
    train(run_of(tmp_path / "parts", schedule=schedule)[0], resume_last=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert "differ" not in listen.text


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_new_learning_rate_counts_from_the_first_resumed_iteration_with_its_schedule(tmp_path, schedule, listen):
    train_half(tmp_path, schedule=schedule)
    run, model = run_of(tmp_path, lambda model: adamw(model, lr=0.001), schedule)
    train(run, resume_last=True)
    expected = [0.001 * (1.0 - 0.9 * iteration / 8) for iteration in range(4, 8)]
    assert [group["lr"] for group in model.seen] == pytest.approx(expected, rel=1e-12)
    assert "learning rate differs from the checkpoint's: 0.1 -> 0.001 (4 parameters)" in listen.text


@pytest.mark.parametrize("way", ["fused", "foreach"])
def test_a_training_goes_on_with_another_way_to_compute_the_same_step(tmp_path, way, listen):
    """The way to compute is no setting of the optimiser, so the log does not tell of it."""
    train(run_of(tmp_path / "whole")[0])
    train_half(tmp_path / "parts")
    train(run_of(tmp_path / "parts", lambda model: adamw(model, **{way: True}))[0], resume_last=True)
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "parts")[name], value)
    assert "differ" not in listen.text


@pytest.mark.parametrize(("key", "value"), [("weight_decay", 0.5), ("betas", (0.5, 0.9))])
def test_new_weight_decay_and_betas_are_used_and_logged(tmp_path, key, value, listen):
    train_half(tmp_path)
    run, model = run_of(tmp_path, lambda model: adamw(model, **{key: value}))
    train(run, resume_last=True)
    assert [group[key] for group in model.seen] == [value] * 4
    assert f"optimiser's {key} differs from the checkpoint's" in listen.text
    assert f"-> {value} (4 parameters)" in listen.text


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_other_groups_take_the_momenta_by_the_names_of_the_parameters(tmp_path, schedule, listen):
    train(run_of(tmp_path / "whole", lambda model: two_groups(model, factor=1.0), schedule)[0])
    train_half(tmp_path / "parts", schedule=schedule)
    train(run_of(tmp_path / "parts", lambda model: two_groups(model, factor=1.0), schedule)[0], resume_last=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))

    train_half(tmp_path / "slow", schedule=schedule)
    train(run_of(tmp_path / "slow", lambda model: two_groups(model, factor=0.5), schedule)[0], resume_last=True)
    assert "0.1 -> 0.05 (2 parameters)" in listen.text


def test_parameters_frozen_or_unfrozen_by_a_resume_are_logged(tmp_path, listen):
    def frozen(model):
        model.backbone.requires_grad_(False)
        return torch.optim.AdamW(model.head.parameters(), lr=0.1)

    train_half(tmp_path)
    before = torch.load(tmp_path / "model_0000003.pth", weights_only=True)["model"]["backbone.weight"]
    train(run_of(tmp_path, frozen)[0], resume_last=True)
    assert torch.equal(weights(tmp_path)["backbone.weight"], before)
    assert "parameters that are now frozen: backbone.bias, backbone.weight" in listen.text

    train(run_of(tmp_path, max_iter=10)[0], resume_last=True)
    assert not torch.equal(weights(tmp_path)["backbone.weight"], before)
    assert "trained from here on, with new momenta: backbone.bias, backbone.weight" in listen.text


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda model: torch.optim.SGD(model.parameters(), lr=0.1), "is AdamW and the config's is SGD"),
        (lambda model: adamw(model, amsgrad=True), "amsgrad=False and the config's True"),
    ],
)
def test_momenta_of_another_kind_are_refused_with_the_remedy(tmp_path, optimizer, message):
    train_half(tmp_path)
    with pytest.raises(UserError, match=f"{message}.*train.init_checkpoint"):
        train(run_of(tmp_path, optimizer)[0], resume_last=True)


def strip_names(folder):
    """Turn the checkpoint into one of the older version, which has no names of parameters."""
    file = folder / "model_0000003.pth"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["trainer"]["optimizer_description"], checkpoint["config"]
    torch.save(checkpoint, file)


def test_checkpoints_of_older_versions_resume_exactly(tmp_path):
    train(run_of(tmp_path / "whole")[0])
    train_half(tmp_path / "parts")
    strip_names(tmp_path / "parts")
    train(run_of(tmp_path / "parts")[0], resume_last=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_checkpoints_of_older_versions_with_other_groups_are_refused(tmp_path):
    train_half(tmp_path)
    strip_names(tmp_path)
    with pytest.raises(UserError, match="groups of 4 parameters and the config gives 2, 2.*older version"):
        train(run_of(tmp_path, lambda model: two_groups(model, factor=0.5))[0], resume_last=True)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"ema_decay": 0.9}, "the average starts with the next iteration"),
        ({"ema_decay": 0.9}, {}, "they are dropped"),
        ({}, {"precision": "fp16"}, ""),
        ({"precision": "fp16"}, {"precision": "bf16"}, ""),
        ({}, {"accumulate": 3, "clip_grad_norm": None}, ""),
    ],
)
def test_averaging_precision_and_accumulation_come_from_the_config(tmp_path, before, after, message, listen):
    train_half(tmp_path, **before)
    train(run_of(tmp_path, **after)[0], resume_last=True)
    assert message in listen.text
    assert ("ema" in torch.load(tmp_path / "model_final.pth", weights_only=True)) == ("ema_decay" in after)


def test_values_of_the_config_that_differ_are_listed_old_and_new(tmp_path, listen):
    old, new = ({"optimizer": {"lr": lr, "eps": 1e-8}, "train": {"output_dir": str(tmp_path)}} for lr in (0.1, 0.01))
    train_half(tmp_path)
    file = tmp_path / "model_0000003.pth"
    train(dataclasses.replace(run_of(tmp_path, max_iter=4)[0], config=OmegaConf.create(old)))
    assert torch.load(file, weights_only=True)["config"]["train.output_dir"] == "<output folder>"
    train(dataclasses.replace(run_of(tmp_path)[0], config=OmegaConf.create(new)), resume_last=True)
    assert "the new ones are used:\n  optimizer.lr: 0.1 -> 0.01\n" in listen.text + "\n"
    assert OmegaConf.load(tmp_path / "config.yaml").optimizer.lr == 0.01


def test_a_refused_resume_leaves_the_config_of_the_training_that_ran(tmp_path):
    train_half(tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    run = dataclasses.replace(run_of(tmp_path, max_iter=2)[0], config=OmegaConf.create({"train": {"max_iter": 2}}))
    with pytest.raises(UserError, match="more than the 2"):
        train(run, resume_last=True)
    assert (tmp_path / "config.yaml").read_text() == text


def test_a_model_with_more_parts_than_the_checkpoint_is_not_resumed_with_random_ones(tmp_path):
    class Larger(Watched):
        def __init__(self):
            super().__init__()
            self.extra = torch.nn.Linear(2, 2)

    train_half(tmp_path)
    run, _ = run_of(tmp_path)
    with pytest.raises(UserError, match="of another model, so its training cannot go on"):
        train(dataclasses.replace(run, build_model=Larger), resume_last=True)
