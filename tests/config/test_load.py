"""Configs of every kind are told apart by content and take overrides of their own style."""

import subprocess
import sys

import pytest
from detectron2.config import CfgNode, LazyConfig
from omegaconf import DictConfig

from sparse_detr.config import load_config
from sparse_detr.config.load import config_kind
from sparse_detr.errors import UserError

LAZY = """
from detectron2.config import LazyCall as L
from torch import nn

model = L(nn.Linear)(in_features=2, out_features="${..train.classes}")
train = dict(max_iter=3, classes=4, amp=dict(enabled=False))
"""
YACS = """
VERSION: 2
SOLVER:
  MAX_ITER: 3
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "lazy.py").write_text(LAZY)
    (tmp_path / "yacs.yaml").write_text(YACS)
    LazyConfig.save(LazyConfig.load(str(tmp_path / "lazy.py")), str(tmp_path / "config.yaml"))
    (tmp_path / "yacs_in_disguise.py").write_text(YACS)
    return {path.stem: str(path) for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("name", "kind"), [("lazy", "python"), ("yacs", "yacs"), ("config", "dump"), ("yacs_in_disguise", "yacs")]
)
def test_kind_is_decided_by_content(files, name, kind):
    assert config_kind(files[name]) == kind


@pytest.mark.parametrize(("name", "kind"), [("lazy", DictConfig), ("yacs", CfgNode), ("config", DictConfig)])
def test_each_kind_is_loaded_as_its_own_type(files, name, kind):
    assert isinstance(load_config(files[name]), kind)


@pytest.mark.parametrize("name", ["lazy", "config"])
def test_lazy_override(files, name):
    cfg = load_config(files[name], ["train.max_iter=7", "train.classes=9"])
    assert cfg.train.max_iter == 7
    assert cfg.model.out_features == 9


def test_yacs_override(files):
    assert load_config(files["yacs"], ["SOLVER.MAX_ITER", "7"]).SOLVER.MAX_ITER == 7


def test_yacs_style_on_a_lazy_config_prints_the_right_form(files):
    with pytest.raises(UserError, match="is a lazy config; write train.max_iter=7 instead of train.max_iter 7"):
        load_config(files["lazy"], ["train.max_iter", "7"])


def test_lazy_style_on_a_yacs_config_prints_the_right_form(files):
    with pytest.raises(UserError, match="is a yacs config; write SOLVER.MAX_ITER 7 instead of SOLVER.MAX_ITER=7"):
        load_config(files["yacs"], ["SOLVER.MAX_ITER=7"])


def test_key_without_value_is_named(files):
    with pytest.raises(UserError, match="'SEED' has no value"):
        load_config(files["yacs"], ["SOLVER.MAX_ITER", "7", "SEED"])


def test_misspelt_lazy_key_is_refused_with_the_nearest_one(files):
    with pytest.raises(UserError, match="no key 'train.max_iters'; did you mean 'max_iter'"):
        load_config(files["lazy"], ["train.max_iters=7"])


def test_key_below_a_missing_one_is_refused(files):
    with pytest.raises(UserError, match="no key 'trian'"):
        load_config(files["lazy"], ["trian.max_iter=7"])


def test_argument_that_a_call_accepts_may_be_added(files):
    assert load_config(files["lazy"], ["model.bias=False"]).model.bias is False
    with pytest.raises(UserError, match="no key 'model.bais'"):
        load_config(files["lazy"], ["model.bais=False"])


def test_misspelt_yacs_key_is_refused(files):
    with pytest.raises(UserError, match="SOLVER.MAX_ITERS"):
        load_config(files["yacs"], ["SOLVER.MAX_ITERS", "7"])


def test_missing_file_is_named():
    with pytest.raises(UserError, match="'nowhere.py' does not exist"):
        load_config("nowhere.py")


def test_file_of_neither_kind_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("a: b: c [")
    with pytest.raises(UserError, match="neither yaml nor Python"):
        load_config(str(path))


def test_the_saved_config_of_the_quick_run_knows_its_data(tmp_path):
    from detectron2.config import LazyConfig
    from detectron2.data import DatasetCatalog

    from sparse_detr.model_zoo import get_config_file

    saved = tmp_path / "config.yaml"
    LazyConfig.save(load_config(get_config_file("quick/sparse_detr_mnv2.py")), str(saved))
    DatasetCatalog.remove("trees_train")
    assert load_config(str(saved)).dataloader.train.dataset.names == "trees_train"
    assert "trees_train" in DatasetCatalog


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        ("train = 'é'".encode("latin-1"), "is not UTF-8 .byte 9.; save it as UTF-8"),
        ("\ufefftrain = {}".encode(), "byte order mark"),
        (b"train = 1\0", "neither yaml nor Python"),
        (b"train = (" + b"(" * 500, "neither yaml nor Python"),
        (b"import nowhere_at_all", "line 1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
        (b"train = {}\nx = 1 / 0", "line 2: ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_reason(tmp_path, content, message):
    path = tmp_path / "x.py"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_config(str(path))


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        load_config(str(tmp_path))


def test_a_python_config_needs_a_name_that_ends_in_py(tmp_path):
    (tmp_path / "x.txt").write_text(LAZY)
    with pytest.raises(UserError, match=r"holds Python; let its name end in .py"):
        load_config(str(tmp_path / "x.txt"))


@pytest.mark.parametrize(
    "text", ["- 1\n- 2\n", "_BASE_: nowhere.yaml\n", "SOLVER: 5\n", "SOLVER:\n  MAX_ITER: [1\n", "5"]
)
def test_yaml_of_the_wrong_form_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match="x.yaml"):
        load_config(str(tmp_path / "x.yaml"))


@pytest.mark.parametrize("kind", ["lazy", "yacs", "quick", "dump"])
def test_loading_a_config_never_replaces_a_data_set_of_the_user(files, tmp_path, kind):
    from detectron2.config import LazyConfig
    from detectron2.data import DatasetCatalog

    from sparse_detr.model_zoo import get_config_file

    quick, saved = get_config_file("quick/sparse_detr_mnv2.py"), str(tmp_path / "config.yaml")
    LazyConfig.save(load_config(quick), saved)
    before = DatasetCatalog["trees_train"]
    DatasetCatalog.remove("trees_train")
    DatasetCatalog.register("trees_train", lambda: ["mine"])
    try:
        load_config({**files, "quick": quick, "dump": saved}[kind])
        assert DatasetCatalog.get("trees_train") == ["mine"]
    finally:
        DatasetCatalog.remove("trees_train")
        DatasetCatalog.register("trees_train", before)


def test_a_config_that_does_not_name_the_sample_data_leaves_them_unregistered(files):
    script = (
        "import sys; from sparse_detr.config import load_config; load_config(sys.argv[1]);"
        "from detectron2.data import DatasetCatalog; sys.exit('trees_train' in DatasetCatalog)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(files["yacs"])], check=False).returncode == 0
