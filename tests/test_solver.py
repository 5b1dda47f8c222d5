"""Parameter groups, learning rates and schedules."""

import math

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import nn

from sparse_detr.errors import UserError
from sparse_detr.solver import cosine_schedule, detr_parameter_groups, scale_learning_rate, step_schedule


class NamedLikeDetr(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"stem": nn.Linear(1, 1), "reference_points": nn.Linear(1, 1)})
        self.encoder = nn.ModuleDict({"sampling_offsets": nn.Linear(1, 1), "norm": nn.LayerNorm(1)})
        self.reference_points = nn.Linear(1, 1)
        self.heads = nn.ModuleList([nn.Linear(1, 1)] * 3)  # tied
        self.frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.not_the_backbone = nn.Linear(1, 1)


def lr_by_name(model, groups):
    lr_of = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {name: lr_of[id(p)] for name, p in model.named_parameters() if p.requires_grad}


def test_backbone_and_sampling_layers_learn_with_their_own_factor():
    model = NamedLikeDetr()
    groups = detr_parameter_groups(model, base_lr=1.0, backbone_multiplier=0.1, sampling_multiplier=0.2)
    lrs = lr_by_name(model, groups)
    assert lrs["backbone.stem.weight"] == lrs["backbone.reference_points.bias"] == 0.1
    assert lrs["encoder.sampling_offsets.weight"] == lrs["reference_points.bias"] == 0.2
    assert lrs["encoder.norm.weight"] == lrs["heads.0.weight"] == lrs["not_the_backbone.bias"] == 1.0


def test_every_trained_parameter_is_in_one_group_and_decays():
    model = NamedLikeDetr()
    groups = detr_parameter_groups(model, base_lr=1.0, weight_decay=0.3)
    parameters = [id(p) for group in groups for p in group["params"]]
    assert sorted(parameters) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert {group["weight_decay"] for group in groups} == {0.3}


def test_norms_decay_by_their_own_rate_and_biases_by_the_common_one():
    model = NamedLikeDetr()
    groups = detr_parameter_groups(model, base_lr=1.0, weight_decay=0.3, norm_weight_decay=0.0)
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    without = {name for name, p in model.named_parameters() if p.requires_grad and decay[id(p)] == 0}
    assert without == {"encoder.norm.weight", "encoder.norm.bias"}


@pytest.mark.parametrize(("rule", "expected"), [("none", 1.0), ("sqrt", math.sqrt(2)), ("linear", 2.0)])
def test_learning_rate_for_32_images(rule, expected, caplog):
    with caplog.at_level("INFO", logger="sparse_detr"):
        assert scale_learning_rate(1.0, total_batch_size=32, rule=rule) == expected
    assert f"batch scaling: {rule}" in caplog.text


def test_unknown_scaling_names_the_choices():
    with pytest.raises(UserError, match="'cube'; choose one of none, sqrt, linear"):
        scale_learning_rate(1.0, total_batch_size=16, rule="cube")


def test_step_schedule_drops_at_the_papers_iteration():
    schedule = step_schedule(max_iter=369650)
    assert schedule(295719 / 369650) == 1.0
    assert schedule(295720 / 369650) == 0.1


def test_step_schedule_of_a_few_iterations_has_no_drop_after_the_end():
    assert step_schedule(max_iter=2)(1 / 2) == 1.0


def test_cosine_schedule_ends_at_its_factor():
    schedule = cosine_schedule(max_iter=100, end_factor=0.1)
    assert schedule(0.0) == 1.0
    assert schedule(1.0) == pytest.approx(0.1)


def test_warmup_starts_low_and_joins_the_schedule():
    schedule = step_schedule(max_iter=100, warmup_iters=10)
    assert schedule(0.0) == pytest.approx(0.001)
    assert schedule(0.1) == 1.0


def test_lazy_optimizer_is_built_as_detectron2s_tools_build_it():
    cfg = LazyConfig.load("configs/common/optim.py")
    cfg.dataloader, cfg.train = {"train": {"total_batch_size": 16}}, {"accumulate": 1}
    cfg.optimizer.lr = 0.5
    cfg.optimizer.params.model = NamedLikeDetr()
    optimizer = instantiate(cfg.optimizer)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sorted(group["lr"] for group in optimizer.param_groups) == [0.05, 0.5]
