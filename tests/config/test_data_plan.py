"""What a config does with data, and the overrides that the doctor proposes."""

import pytest

from sparse_detr import model_zoo
from sparse_detr.config import load_config
from sparse_detr.config.data_plan import override_of, plan_of
from sparse_detr.data.plan import Change, Plan, Resize
from tests.test_train import YACS

LAZY = model_zoo.get_config_file("quick/sparse_detr_mnv2.py")
CHANGES = [
    Change("model.queries.num_queries", 150, ""),
    Change("model.postprocess.num_detections", 120, ""),
    Change("dataloader.train.mapper.augmentations.short_sizes", [480, 512, 544], ""),
    Change("dataloader.train.mapper.augmentations.max_size", 544, ""),
    Change("dataloader.test.mapper.augmentations.short_size", 512, ""),
    Change("dataloader.test.mapper.augmentations.max_size", 544, ""),
    Change("dataloader.train.mapper.augmentations.crop_range", None, ""),
    Change("model.selector.budget.keep_ratio", 0.45, ""),
]


@pytest.fixture
def yacs(tmp_path, request):
    path = tmp_path / "tiny.yaml"
    path.write_text(YACS.format(base=request.config.rootpath / "configs" / "Base-DETR.yaml"))
    return str(path)


def test_the_plan_of_a_lazy_config_is_read_off_its_parts():
    assert plan_of(load_config(LAZY)) == Plan(
        num_queries=100,
        num_detections=100,
        resize=Resize(384, 384),
        short_sizes=(384,),
        strides=(8, 16, 32),
        keep_ratio=0.3,
        crops=True,
    )


def test_the_plan_of_a_yaml_config_is_read_off_its_parts(yacs):
    plan = plan_of(load_config(yacs, ["INPUT.MIN_SIZE_TRAIN", "(64, 80, 96)", "TEST.DETECTIONS_PER_IMAGE", "110"]))
    assert (plan.num_queries, plan.resize, plan.crops) == (5, Resize(80, 1333), False)
    assert (plan.strides, plan.keep_ratio) == ((8, 16, 32, 64), 0.3)
    assert (plan.num_detections, plan.evaluation_limit) == (110, 110)


def test_a_model_on_one_map_keeps_all_its_tokens():
    plan = plan_of(model_zoo.get_config("DETR/detr_r50.py"))
    assert (plan.strides, plan.keep_ratio) == ((32,), 1.0)
    assert plan.resize == Resize(640, 1333)


def test_the_proposed_overrides_of_a_lazy_config_do_what_they_say():
    cfg = load_config(LAZY)
    overrides = [override_of(cfg, change) for change in CHANGES]
    assert overrides[2] == "dataloader.train.mapper.augmentations.short_sizes=[480,512,544]"
    assert overrides[6] == "dataloader.train.mapper.augmentations.crop_range=null"
    plan = plan_of(load_config(LAZY, overrides))
    assert (plan.num_queries, plan.num_detections, plan.resize) == (150, 120, Resize(512, 544))
    assert (plan.crops, plan.keep_ratio, plan.short_sizes) == (False, 0.45, (480, 512, 544))


def test_the_proposed_overrides_of_a_yaml_config_do_what_they_say(yacs):
    cfg = load_config(yacs)
    overrides = [override_of(cfg, change) for change in CHANGES]
    assert overrides[2] == "INPUT.MIN_SIZE_TRAIN [480,512,544]"
    words = [word for override in overrides for word in override.split(" ", 1)]
    changed = load_config(yacs, words)
    plan = plan_of(changed)
    assert (plan.num_queries, plan.num_detections, plan.resize) == (150, 120, Resize(512, 544))
    assert (plan.crops, plan.keep_ratio, plan.short_sizes) == (False, 0.45, (480, 512, 544))
    assert (changed.INPUT.MIN_SIZE_TEST, changed.INPUT.MAX_SIZE_TEST) == (512, 544)


def test_a_change_that_is_no_setting_of_the_config_has_no_override(yacs):
    for cfg in (load_config(LAZY), load_config(yacs)):
        assert override_of(cfg, Change("", "cut the images into tiles", "")) is None
        assert override_of(cfg, Change("model.no.such", 3, "")) is None
