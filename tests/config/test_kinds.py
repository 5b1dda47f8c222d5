"""Configs of both kinds have one interface, and only one module tests which kind a config is."""

import ast
from pathlib import Path

import pytest
import yaml
from detectron2.config import LazyCall, get_cfg
from omegaconf import OmegaConf
from torch import nn

import sparse_detr
from sparse_detr.config import add_detr_config, load_config
from sparse_detr.config.kinds import YACS_KEYS, kind_of, names_in
from sparse_detr.config.model import build_detector, set_num_classes
from sparse_detr.errors import UserError
from tests.config.mutations import LAZY, YACS

PACKAGE = Path(sparse_detr.__file__).parent


def yacs_config():
    cfg = get_cfg()
    add_detr_config(cfg)
    return cfg


def lazy_config():
    return OmegaConf.create({"train": {"device": "cpu", "seed": 3}, "dataloader": {"train": {"dataset": {}}}})


@pytest.fixture(params=[lazy_config, yacs_config])
def cfg(request):
    return request.param()


def looks_at_the_kind(node):
    is_check = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
    return is_check and "CfgNode" in ast.unparse(node.args[1])


def test_only_one_module_tests_which_kind_a_config_is():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if any(map(looks_at_the_kind, ast.walk(ast.parse(path.read_text()))))
    }
    assert found == {"config/kinds.py"}


def test_a_value_set_under_a_lazy_key_is_read_under_it(cfg):
    kind = kind_of(cfg)
    for key, value in {"train.device": "cuda:1", "train.seed": 7, "model.num_classes": 5}.items():
        kind.set(key, value)
        assert kind.get(key) == value
    kind.set("dataloader.train.dataset.names", ("a", "b"))
    assert names_in(cfg, "train") == ["a", "b"]
    kind.set("dataloader.train.dataset.names", ("a",))
    assert names_in(cfg, "train") == ["a"]


def test_groups_are_replaced_and_not_merged():
    cfg = lazy_config()
    kind_of(cfg).set("train.own_data", {"train_json": "a"})
    kind_of(cfg).set("train.own_data", {"val_json": "b"})
    assert kind_of(cfg).get("train.own_data") == {"val_json": "b"}


def test_every_lazy_key_has_its_yacs_key():
    kind = kind_of(yacs_config())
    for key, yacs_key in YACS_KEYS.items():
        kind.set(key, kind.get(key))
        assert kind.assignment(key, 1) == f"{yacs_key} 1"
    with pytest.raises(KeyError):
        kind.set("train.no_such_key", 1)


def test_a_missing_setting_is_none():
    assert kind_of(lazy_config()).get("train.own_data") is None
    assert names_in(lazy_config(), "test") == []
    assert kind_of(get_cfg()).get("model.num_classes") is None  # Detectron2's own config, without our keys


def test_an_assignment_has_the_style_of_its_kind():
    assert kind_of(lazy_config()).assignment("train.device", "cpu") == "train.device=cpu"
    assert kind_of(yacs_config()).assignment("train.device", "cpu") == "MODEL.DEVICE cpu"


def test_the_text_is_yaml_of_the_whole_config(cfg):
    kind_of(cfg).set("train.seed", 11)
    text = yaml.safe_load(kind_of(cfg).text())
    assert kind_of(cfg).choose(lazy=text.get("train", {}).get("seed"), yacs=text.get("SEED")) == 11


@pytest.mark.parametrize("path", [LAZY, YACS])
def test_a_saved_config_loads_equal(path, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    kind_of(load_config(str(path))).save(first)
    kind_of(load_config(str(first))).save(second)
    assert yaml.safe_load(first.read_text()) == yaml.safe_load(second.read_text())


def test_a_change_of_a_copy_does_not_change_the_original(cfg):
    before = kind_of(cfg).text()
    kind_of(cfg).choose(lazy=lambda: OmegaConf.set_readonly(cfg, True), yacs=getattr(cfg, "freeze", None))()
    copied = kind_of(cfg).copy()
    kind_of(copied).set("train.seed", 99)
    assert kind_of(copied).get("train.seed") == 99
    assert kind_of(cfg).text() == before


@pytest.mark.parametrize("value", [{"train": {}}, None, "config.yaml", OmegaConf.create([1])])
def test_what_is_no_config_is_refused(value):
    with pytest.raises(UserError, match=f"a config is a DictConfig .* not a {type(value).__name__}"):
        kind_of(value)


def test_a_model_is_built_on_the_device_of_the_call_or_of_the_config():
    cfg = OmegaConf.create({"model": LazyCall(nn.Linear)(in_features=2, out_features=3), "train": {"device": "meta"}})
    assert build_detector(cfg).weight.is_meta
    assert not build_detector(cfg, device="cpu").weight.is_meta
    assert cfg.train.device == "meta"
    del cfg.train
    assert not build_detector(cfg).weight.is_meta


def test_a_model_that_cannot_be_built_is_named_by_its_key():
    cfg = OmegaConf.create({"model": LazyCall(nn.Linear)(in_features="x", out_features=3)})
    with pytest.raises(UserError, match="model cannot be built: TypeError"):
        build_detector(cfg)


def test_class_channels_stay_if_they_hold_the_number_of_classes(cfg):
    kind = kind_of(cfg)
    set_num_classes(cfg, 3)
    assert (kind.get("model.num_classes"), kind.get("model.class_channels")) == (3, None)
    kind.set("model.class_channels", [1, 4])
    set_num_classes(cfg, 2)
    assert (kind.get("model.num_classes"), kind.get("model.class_channels")) == (3, [1, 4])
    set_num_classes(cfg, 5)
    assert (kind.get("model.num_classes"), kind.get("model.class_channels")) == (5, None)
