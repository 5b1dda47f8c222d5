"""Parts that are named do not learn: no weight, no statistic, no place in the optimizer."""

import logging

import pytest
import torch
from torch import nn

from sparse_detr.engine.freeze import freeze
from sparse_detr.engine.training import train
from sparse_detr.errors import UserError
from sparse_detr.solver import detr_parameter_groups
from tests.engine.test_resume import assert_same_checkpoints, final, train_interrupted
from tests.engine.toys import ToyDetector, toy_run
from tests.modeling.tiny import build, picture


@pytest.fixture
def listen(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("sparse_detr"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


def frozen(model):
    return {name for name, weight in model.named_parameters() if not weight.requires_grad}


def names(model, *prefixes):
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        (["backbone"], ["backbone."]),
        (["encoder.layers.0"], ["encoder.layers.0."]),
        (["encoder.layers.1", "decoder"], ["encoder.layers.1.", "decoder."]),
        (["encoder.layers.*.ffn"], [f"encoder.layers.{index}.ffn." for index in range(3)]),
        (["tokenizer.level_embed"], ["tokenizer.level_embed"]),
    ],
)
def test_a_name_stands_for_all_below_it(patterns, prefixes):
    model = build("sparse")
    freeze(model, patterns)
    assert frozen(model) == names(model, *prefixes)
    assert frozen(model)


def test_a_name_is_no_prefix_of_a_longer_word():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "head2": nn.Linear(2, 2)})
    freeze(model, ["head"])
    assert frozen(model) == {"head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("bckbone", "train.freeze \\(SOLVER.FREEZE\\) names 'bckbone', .*; the model has .*backbone, decoder, "),
        ("encoder.layers.9", "encoder.layers has 0, 1, 2$"),
        ("encoder.layer", "encoder has layers$"),
        ("backbone.levels.0.kernel", "backbone.levels.0 has bias, weight$"),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(pattern, message):
    with pytest.raises(UserError, match=message):
        freeze(build("sparse"), ["backbone", pattern])


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(ToyDetector(), ["backbone", "head"])


def test_the_optimizer_has_no_frozen_weights_and_they_get_no_gradient():
    model = build("sparse").train()
    freeze(model, ["backbone", "encoder.layers.0"])
    held = {id(weight) for group in detr_parameter_groups(model, 1e-3) for weight in group["params"]}
    expected = {name for name, weight in model.named_parameters() if id(weight) in held}
    assert expected == names(model, "") - names(model, "backbone.", "encoder.layers.0.")
    sum(model.losses([picture(64, 96)]).values()).backward()
    assert all(weight.grad is None for name, weight in model.named_parameters() if name in frozen(model))
    assert model.encoder.layers[1].ffn.linear1.weight.grad is not None


class WithNorms(ToyDetector):
    """A toy with a batch norm in its backbone and one in its head."""

    def __init__(self):
        super().__init__(dropout=0.5)
        first = self.backbone
        self.backbone = nn.Sequential(first, nn.BatchNorm1d(8))
        self.backbone.weight = first.weight  # ToyDetector reads its device
        self.head = nn.Sequential(self.head, nn.BatchNorm1d(1))


def test_batch_norms_of_frozen_parts_keep_their_statistics_and_others_learn(tmp_path):
    model = WithNorms()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(toy_run(tmp_path, model=model, freeze=["backbone"], ema_decay=0.9, scores=[1.0] * 4))
    after = model.state_dict()
    assert {name for name in after if torch.equal(after[name], before[name])} == {
        name for name in after if name.startswith("backbone.")
    }
    assert after["head.1.num_batches_tracked"] == 8
    average = final(tmp_path)["ema"]
    assert all(torch.equal(average[f"module.{name}"], value) for name, value in before.items() if "backbone" in name)


def test_a_frozen_batch_norm_normalises_by_its_collected_statistics():
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(3.0)
    norm.running_var.fill_(4.0 - norm.eps)
    model = nn.ModuleDict({"norm": norm, "rest": nn.Linear(1, 1)})
    freeze(model, ["norm"])
    model.train()
    assert norm(torch.tensor([[5.0], [1.0]])).tolist() == [[1.0], [-1.0]]  # (x - 3) / 2
    assert norm.running_mean.item() == 3.0


def test_resumed_training_with_frozen_parts_equals_the_uninterrupted_one(tmp_path, monkeypatch):
    torch.manual_seed(1)
    train(toy_run(tmp_path / "whole", model=WithNorms(), freeze=["backbone"]))
    torch.manual_seed(1)
    train_interrupted(toy_run(tmp_path / "parts", model=WithNorms(), freeze=["backbone"]), monkeypatch, before=5)
    torch.manual_seed(99)
    train(toy_run(tmp_path / "parts", model=WithNorms(), freeze=["backbone"]), resume_last=True)
    assert_same_checkpoints(final(tmp_path / "whole"), final(tmp_path / "parts"))


def trained_parameters(model):
    return torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)


def test_a_resume_with_another_list_goes_on_and_says_so(tmp_path, listen):
    from dataclasses import replace

    train(toy_run(tmp_path, max_iter=4))
    run = replace(toy_run(tmp_path, max_iter=6, freeze=["backbone"]), build_optimizer=trained_parameters)
    train(run, resume_last=True)
    assert "parameters that are now frozen: backbone.bias, backbone.weight" in listen.text
    assert "frozen: 40 of 49 weights, with backbone" in listen.text
    train(replace(toy_run(tmp_path, max_iter=8), build_optimizer=trained_parameters), resume_last=True)
    assert "trained from here on, with new momenta: backbone.bias, backbone.weight" in listen.text
