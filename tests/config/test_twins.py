"""Every config of a project stands there twice, lazy and yaml: the two say the same."""

from pathlib import Path

import pytest

from sparse_detr.config import load_config
from sparse_detr.config.run import make_run

ROOT = Path(__file__).parents[2]
WITHOUT_TWIN = {"sparse_detr_r50_finetune"}  # a lazy config only
CONFIGS = sorted(path for path in ROOT.glob("projects/*/configs/*.py") if path.stem not in WITHOUT_TWIN)
ONE_OF_EACH_MODEL = [path for path in CONFIGS if "rho" not in path.stem or "rho30" in path.stem]
SETTINGS = ("output_dir", "max_iter", "init_checkpoint", "seed", "precision", "clip_grad_norm", "accumulate")
SETTINGS += ("ema_decay", "eval_period", "best_metric")


def test_no_yaml_config_is_without_a_lazy_one():
    assert {path.with_suffix(".py") for path in ROOT.glob("projects/*/configs/*.yaml")} == set(CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_both_configs_of_a_name_mean_the_same_training(path):
    lazy, yaml = (make_run(load_config(str(path.with_suffix(suffix)))) for suffix in (".py", ".yaml"))
    for setting in SETTINGS:
        assert getattr(lazy.settings, setting) == getattr(yaml.settings, setting), setting
    assert lazy.settings.checkpointer["period"] == yaml.settings.checkpointer["period"]
    assert lazy.train_names == yaml.train_names
    assert lazy.config.dataloader.train.total_batch_size == yaml.config.SOLVER.IMS_PER_BATCH
    assert [names.names for names in lazy.evaluation_sets] == [names.names for names in yaml.evaluation_sets]
    assert lazy.config.model.selector.get("keep_ratio") == yaml.config.MODEL.DETR.KEEP_RATIO


@pytest.mark.slow
@pytest.mark.parametrize("path", ONE_OF_EACH_MODEL, ids=lambda path: path.stem)
def test_both_configs_of_a_name_make_the_same_parameters_groups_and_schedule(path):
    (shapes, groups, rates), expected = (trained(path.with_suffix(suffix)) for suffix in (".py", ".yaml"))
    assert shapes == expected[0]
    assert groups == expected[1]
    assert rates == pytest.approx(expected[2])


def trained(path):
    """Shapes by name, (learning rate, decay) by name, and the schedule's multiplier along the training."""
    cfg = load_config(str(path), ["train.device=cpu"] if path.suffix == ".py" else ["MODEL.DEVICE", "cpu"])
    run = make_run(cfg)
    model = run.build_model()
    optimizer = run.build_optimizer(model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    schedule = run.build_schedule(optimizer)
    return {name: value.shape for name, value in model.state_dict().items()}, groups, rates(schedule, run.settings)


def rates(schedule, settings):
    """The multiplier at the start, before and after the drop, and at the end."""
    iterations = [0, round(0.79 * settings.max_iter), round(0.81 * settings.max_iter), settings.max_iter - 1]
    multiplier = getattr(schedule, "_multiplier", schedule)  # what Detectron2's LRMultiplier wraps
    return [multiplier(iteration / settings.max_iter) for iteration in iterations]
