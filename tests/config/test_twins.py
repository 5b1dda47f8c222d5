"""Every lazy config of a project has an equal yaml twin: a file, or a file with overrides."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sparse_detr.config import load_config
from sparse_detr.config.removed import YAML_ROWS, successor_of
from sparse_detr.config.run import make_run
from sparse_detr.recipes import RECIPES
from tests.meta import meta_device

ROOT = Path(__file__).parents[2]
WITHOUT_TWIN = {  # lazy configs only: they reach where no key does
    "sparse_detr_r50_finetune",
    "dab_deformable_encoder_r50",
    "dino_detrex_r50_4scale_12ep_better_hyper",
    "dino_detrex_r50_4scale_12ep_better_hyper_300dn",
}
CONFIGS = sorted(path for path in ROOT.glob("projects/*/configs/*.py") if path.stem not in WITHOUT_TWIN)
YAMLS = sorted(ROOT.glob("projects/*/configs/*.yaml"))
SETTINGS = ("output_dir", "max_iter", "init_checkpoint", "seed", "precision", "clip_grad_norm", "accumulate")
SETTINGS += ("ema_decay", "eval_period", "vis_period", "best_metric", "fast_backbone", "checkpoint_activations")


def load_yaml(path, *overrides):
    """Load the yaml twin of a lazy config; without a file, as the error for its name says."""
    yaml = path.with_suffix(".yaml")
    if yaml.is_file():
        return load_config(str(yaml), overrides)
    told = successor_of(str(yaml))
    assert told, f"there is no {yaml.name}, and no row of it in sparse_detr/config/removed.py"
    start, keys = re.fullmatch(r".* is gone; use (\S+) with (.*), or the lazy config \S+", told).groups()
    return load_config(f"{ROOT}/{start}", [*shlex.split(keys), *overrides])


@cache
def twins(path):
    """Return the lazy config and its yaml twin; they are read once, so do not change them."""
    return load_config(str(path)), load_yaml(path)


def test_each_meta_architecture_has_one_yaml():
    assert sorted(load_config(str(path)).MODEL.META_ARCHITECTURE for path in YAMLS) == sorted(RECIPES)


def test_each_lazy_config_has_a_yaml_or_a_row_of_the_table():
    names = [path.stem for path in YAMLS] + list(YAML_ROWS)
    assert sorted(names) == sorted(path.stem for path in CONFIGS)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_both_configs_of_a_name_describe_the_same_training(path):
    lazy, yaml = map(make_run, twins(path))
    assert lazy.settings.output_dir == f"output/{path.stem}"
    for setting in SETTINGS:
        assert getattr(lazy.settings, setting) == getattr(yaml.settings, setting), setting
    assert lazy.settings.checkpointer["period"] == yaml.settings.checkpointer["period"]
    assert lazy.train_names == yaml.train_names
    data = lazy.config.dataloader.train
    assert data.total_batch_size == yaml.config.SOLVER.IMS_PER_BATCH
    assert data.dataset.filter_empty == yaml.config.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert (data.mapper.augmentations.get("crop_range", True) is not None) == yaml.config.INPUT.CROP.ENABLED
    assert [names.names for names in lazy.evaluation_sets] == [names.names for names in yaml.evaluation_sets]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_both_configs_of_a_name_drop_the_learning_rate_after_the_same_iteration(path):
    """In a training of millions, some iterations earlier: fvcore adds a millionth to the share that is done."""
    lazy, yaml = twins(path)
    max_iter, (drop,) = yaml.SOLVER.MAX_ITER, yaml.SOLVER.STEPS
    early = max_iter // 10**6
    schedule = make_run(lazy).build_schedule(None)
    iterations = (0, drop - 1 - (early + 1 if early else 0), drop, max_iter - 1)
    multipliers = [schedule(iteration / max_iter) for iteration in iterations]
    assert multipliers == pytest.approx([1, 1, 0.1, 0.1])


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_both_configs_of_a_name_make_the_same_model_and_parameter_groups(path):
    lazy = built(load_config(str(path), ["train.device=meta"]))
    yaml = built(load_yaml(path, "MODEL.DEVICE", "meta"))
    for part, expected in zip(lazy, yaml, strict=True):
        assert part == expected


def built(config):
    """Return shapes by name, the settings of every module, and (learning rate, decay) by name."""
    run = make_run(config)
    with meta_device():
        model = run.build_model()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    modules = {name: (type(module).__name__, settings(module)) for name, module in model.named_modules()}
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = run.build_optimizer(model).param_groups
    rates = {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    return shapes, modules, rates


def settings(module):
    """Return the numbers and texts among the attributes of a module."""
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in plain.items() if isinstance(value, bool | int | float | str | tuple | dict)}


EPOCHS = {
    "detr_r50": (500, 400),
    "detr_r50_300ep": (300, 200),
    "conditional_detr_r101": (50, 40),
    "efficient_detr_r50": (36, 24),
    "dino_r50_4scale_24ep": (24, 20),
    "dino_swin_l_384_5scale_36ep": (36, 30),
    "dab_detr_r50": (50, 40),
}
EPOCHS_OF_14786 = {"detr_r101_dc5": (500, 400), "conditional_detr_r50_dc5": (50, 40), "anchor_detr_r101": (50, 40)}
EPOCHS_OF_7500 = {
    "focus_detr_r50_36ep": (36, 20),
    "focus_detr_swin_b_384_36ep": (36, 30),
    "focus_detr_r101_12ep": (12, 11),
}


SCHEDULES = [
    (name, length, *epochs)
    for length, of_length in ((7393, EPOCHS), (7500, EPOCHS_OF_7500), (14786, EPOCHS_OF_14786))
    for name, epochs in of_length.items()
]


@pytest.mark.parametrize(("name", "length", "epochs", "drop"), SCHEDULES, ids=[name for name, *_ in SCHEDULES])
def test_schedules_are_the_papers(name, length, epochs, drop):
    (path,) = [path for path in CONFIGS if path.stem == name]
    lazy, solver = twins(path)[0], twins(path)[1].SOLVER
    assert lazy.train.max_iter == epochs * length
    assert OmegaConf.select(lazy, "lr_multiplier.drop_at")[0] == pytest.approx(drop / epochs)
    assert list(solver.STEPS) == [drop * length]


def test_configs_are_short_and_named_without_dots():
    for path in (*ROOT.glob("projects/*/configs/*.*"), *ROOT.glob("configs/quick/*_mnv2.py")):
        assert "." not in path.stem
        assert len(path.read_text().splitlines()) <= 30, path
