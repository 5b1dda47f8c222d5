"""The code of docs/adding_a_paper.md, in the files that it names, makes the model that the document speaks of."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from sparse_detr import recipes
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.recipes import meta_arch
from tests.config.test_twins import built
from tests.golden.cases import weight
from tests.modeling.tiny import picture

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/adding_a_paper.md").read_text()
FILES = dict(re.findall(r"^```\w+\n# (\S+/\S+)\n(.*?)^```", TEXT, re.M | re.S))
PROJECT = "projects/BrightnessDETR/configs/brightness_detr_r50_rho30"


def rows(table, **names):
    """The row of a table that the document shows, as a dict."""
    (row,) = re.findall(rf"^# a row of {table}\n(.*?)^```", TEXT, re.M | re.S)
    return eval(f"{{{row}}}", names)


def import_file(path, monkeypatch):
    """Run the code of a file as the module that it would be."""
    module = ModuleType(path.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(FILES[path], path, "exec"), vars(module))
    return module


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the configs of the document; its part, recipe and name are known to the package."""
    import_file("sparse_detr/modeling/selection/brightness.py", monkeypatch)
    recipe = import_file("sparse_detr/recipes/brightness_detr.py", monkeypatch).brightness_detr
    monkeypatch.setattr(recipes, "brightness_detr", recipe, raising=False)
    for name, found in rows("RECIPES", **vars(meta_arch), brightness_detr=recipe).items():
        monkeypatch.setitem(meta_arch.RECIPES, name, found)
        monkeypatch.setitem(META_ARCH_REGISTRY._obj_map, name, meta_arch._meta_architecture(name))
    (tmp_path / "configs/quick").mkdir(parents=True)
    for path in (*ROOT.glob("configs/*"), *ROOT.glob("configs/quick/*.py")):
        if path.name != "quick":
            (tmp_path / path.relative_to(ROOT)).symlink_to(path)
    for path in (path for path in FILES if path.startswith(("configs/", "projects/"))):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(FILES[path])
    return tmp_path


def test_both_configs_of_the_document_make_the_same_model(project):
    lazy = load_config(f"{project}/{PROJECT}.py", ["train.device=meta", "model.selector.scorer.pooling=max"])
    yaml = load_config(f"{project}/{PROJECT}.yaml", ["MODEL.DEVICE", "meta", "MODEL.DETR.POOLING", "max"])
    for part, expected in zip(built(lazy), built(yaml), strict=True):
        assert part == expected


def test_a_row_without_a_yaml_is_said_by_overrides(project):
    ((start, overrides),) = rows("_ROWS").items()
    assert [load_config(f"{project}/{start}", keys.split()).MODEL.DETR.KEEP_RATIO for keys in overrides.values()] == [
        0.1
    ]


def test_the_quick_model_of_the_document_trains_and_detects(project):
    cfg = load_config(f"{project}/configs/quick/brightness_detr_mnv2.py", ["train.device=cpu"])
    model, image = build_detector(cfg), picture(96, 64, boxes=((0.1, 0.2, 0.5, 0.7),))
    sum(model.losses([image]).values()).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.encoder.parameters())
    assert type(model.selector.scorer).__name__ == "BrightnessScorer"
    assert len(model.eval()([image])[0]["instances"]) == 100


def test_the_test_of_the_document_passes(project, monkeypatch):
    module = import_file("tests/modeling/test_brightness.py", monkeypatch)
    test = module.test_brightness_is_the_mean_or_the_maximum_of_the_channels
    (cases,) = [mark.args[1] for mark in test.pytestmark]
    for case in cases:
        test(*case)
    assert len(cases) == 2


def test_the_code_for_a_golden_case_runs():
    """It gives a model its weights by name, and makes images and boxes."""
    (code,) = [block for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.M | re.S) if "golden.cases" in block]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).double()
    names = {"model": model, "image_sizes": [(32, 48), (40, 24)], "count": 3, "num_classes": 5}
    exec(code, names)
    assert torch.equal(model[1].bias, torch.from_numpy(weight("1.bias", (4,))).double())
    assert [tuple(image.shape[1:]) for image in names["images"]] == names["image_sizes"]
    assert names["boxes"].shape == (3, 4)


def test_the_files_that_the_document_names_exist_or_are_made_by_it():
    new = {"tests/golden/NAME/", "projects/BrightnessDETR/configs/", "projects/BrightnessDETR/README.md", *FILES}
    named = set(re.findall(r"(?:sparse_detr|tests|projects|configs|scripts)/[\w/.-]*\w/?", TEXT))
    assert [name for name in named - new if not (ROOT / name).exists()] == []
    assert len(named) > 20


def test_every_heading_that_the_document_links_to_exists():
    headings = [title.lower().replace(".", "").replace(" ", "-") for title in re.findall(r"^## (.*)", TEXT, re.M)]
    links = re.findall(r"\]\(#([^)]+)\)", TEXT)
    assert links == headings
