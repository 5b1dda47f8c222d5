"""The options of a training mean the same in a lazy and in a yaml config, and wrong values are refused."""

from dataclasses import asdict

import pytest
from detectron2.config import instantiate

from sparse_detr.config import load_config
from sparse_detr.config.run import make_run
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.data.presets import preset_augmentations
from sparse_detr.errors import UserError
from tests.config.mutations import LAZY, YACS

OPTIONS = {
    # lazy overrides, yaml overrides: the settings of the training
    "none": ([], [], {"max_time": None, "validation_loss": False}),
    "early stopping": (
        ["train.early_stopping.patience=3", "train.early_stopping.min_improvement=0.5"],
        ["SOLVER.EARLY_STOPPING.PATIENCE", "3", "SOLVER.EARLY_STOPPING.MIN_IMPROVEMENT", "0.5"],
        {"early_stopping": {"patience": 3, "metric": None, "min_improvement": 0.5}},
    ),
    "watched metric": (
        ["train.early_stopping.metric=validation/total_loss"],
        ["SOLVER.EARLY_STOPPING.METRIC", "validation/total_loss"],
        {"early_stopping": {"patience": 0, "metric": "validation/total_loss", "min_improvement": 0.0}},
    ),
    "time": (["train.max_time=2h30m"], ["SOLVER.MAX_TIME", "2h30m"], {"max_time": 9000}),
    "validation loss": (["train.validation_loss=true"], ["TEST.VALIDATION_LOSS", "True"], {"validation_loss": True}),
    "validation batches": (["train.validation_loss=20"], ["TEST.VALIDATION_LOSS", "20"], {"validation_loss": 20}),
    "writers": (
        ["train.writers=[wandb,mlflow]"],
        ["SOLVER.WRITERS", "['wandb', 'mlflow']"],
        {"writers": ["wandb", "mlflow"]},
    ),
    "frozen parts": (
        ["train.freeze=[backbone,encoder.layers.*.ffn]"],
        ["SOLVER.FREEZE", "['backbone', 'encoder.layers.*.ffn']"],
        {"freeze": ["backbone", "encoder.layers.*.ffn"]},
    ),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_means_the_same_in_both_kinds_of_config(option):
    lazy, yacs, expected = OPTIONS[option]
    for path, overrides in ((LAZY, lazy), (YACS, yacs)):
        settings = asdict(make_run(load_config(str(path), overrides)).settings)
        assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (LAZY, ["dataloader.train.mapper.augmentations.preset=industrial"]),
        (YACS, ["INPUT.AUGMENTATION", "industrial"]),
    ],
)
def test_an_augmentation_preset_reaches_the_mapper_of_both_kinds_of_config(path, overrides):
    cfg = load_config(str(path), overrides)
    lazy = path == LAZY
    mapper = instantiate(cfg.dataloader.train.mapper) if lazy else DetrDatasetMapper(cfg, is_train=True)
    expected = [type(step) for step in preset_augmentations("industrial")]
    assert [type(step) for step in mapper.augmentations.augs[: len(expected)]] == expected


FAULTS = [
    ("train.early_stopping.patience=-1", "SOLVER.EARLY_STOPPING.PATIENCE -1", "give a whole number, 0 or more"),
    ("train.early_stopping.metric=''", None, "give a text that is not empty, or null"),
    ("train.early_stopping.min_improvement=-1", "SOLVER.EARLY_STOPPING.MIN_IMPROVEMENT -1", "give a number 0 or more"),
    ("train.early_stopping=5", None, "train.early_stopping is a group of settings"),
    ("train.max_time=3600", "SOLVER.MAX_TIME 3600", "3600 cannot be used; give a time such as 2h30m, 45m or 90s"),
    ("train.max_time=2days", "SOLVER.MAX_TIME 2days", "2days cannot be used; give a time such as 2h30m"),
    ("train.max_time=0s", "SOLVER.MAX_TIME 0s", "0s cannot be used"),
    ("train.validation_loss=0", "TEST.VALIDATION_LOSS 0", "0 cannot be used; give true or false, or a whole number"),
    ("train.validation_loss=all", "TEST.VALIDATION_LOSS all", "all cannot be used; give true or false"),
    ("train.batch=7", "SOLVER.BATCH 7", "7 cannot be used; give one of auto, or null"),
    (
        "dataloader.train.mapper.augmentations.preset=xray",
        "INPUT.AUGMENTATION xray",
        "xray cannot be used; give one of photos, aerial, industrial, or null",
    ),
    ("train.writers=[neptune]", "SOLVER.WRITERS ['neptune']", "give a list, each value one of wandb, mlflow"),
    ("train.freeze=backbone", "SOLVER.FREEZE backbone", "SOLVER.FREEZE|backbone cannot be used; give a list"),
    ("train.freeze=[1]", "SOLVER.FREEZE [1]", "cannot be used; give a list, each value a text that is not empty"),
]


@pytest.mark.parametrize(("lazy", "yacs", "message"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_value_that_cannot_be_used_is_refused_in_both_kinds_of_config(lazy, yacs, message):
    with pytest.raises(UserError, match=message):
        load_config(str(LAZY), [lazy])
    if yacs:
        with pytest.raises(UserError, match=message):
            load_config(str(YACS), yacs.split(" ", 1))
