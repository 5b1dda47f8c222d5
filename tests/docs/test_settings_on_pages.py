"""Every setting that a page names exists: in the config that the page names, in yaml, or as an option of a recipe."""

import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from detectron2.utils.registry import locate

from sparse_detr import model_zoo, recipes
from sparse_detr.recipes.meta_arch import recipe_options

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.glob("coming_from/*.md"))
MARK = re.compile(r"<!-- keys of (\S+) (\S+) -->\n(.*?)(?=<!-- keys|\Z)", re.DOTALL)


class Key(NamedTuple):
    """What a page says about one name of another code: a lazy key or a recipe's options, or a yaml key."""

    config: str
    text: str

    def __str__(self):
        return f"{Path(self.config).stem}: {self.text}"


def keys(column):
    """Yield what stands in the columns "lazy" or "yaml" of the tables of the pages."""
    for page in sorted(DOCS.rglob("*.md")):
        for lazy, yaml, tables in MARK.findall(page.read_text(encoding="utf-8")):
            header = []
            for line in tables.splitlines():
                cells = [cell.strip() for cell in line.strip("|").split("|")]
                if "lazy" in cells:
                    header = cells
                elif not line.startswith("|"):
                    header = []
                elif header:
                    for text in re.findall(r"`([^`]+)`", cells[header.index(column)]):
                        several = column == "lazy" and "(" not in text
                        config = lazy if column == "lazy" else yaml
                        yield from (Key(config, setting) for setting in (text.split() if several else [text]))


LAZY, YAML = sorted(set(keys("lazy"))), sorted(set(keys("yaml")))


@pytest.fixture(scope="module")
def configs():
    return {name: model_zoo.get_config(name) for name in {key.config for key in LAZY + YAML}}


def check_lazy(node, path):
    """Raise `KeyError` unless `path` leads to a value of the tree, or to an argument of what is called there."""
    name, _, rest = path.partition(".")
    if "_target_" in node and name not in node:
        target = locate(node._target_) if isinstance(node._target_, str) else node._target_
        if rest or name not in inspect.signature(target).parameters:
            raise KeyError(path)
        return
    if name not in node:
        raise KeyError(path)
    child = node[name]
    if rest:
        check_lazy(child, rest)


@pytest.mark.parametrize("key", [key for key in LAZY if "(" not in key.text], ids=str)
def test_a_lazy_key_exists(key, configs):
    path, _, _ = key.text.partition("=")
    check_lazy(configs[key.config], path)


@pytest.mark.parametrize("key", [key for key in LAZY if "(" in key.text], ids=str)
def test_the_options_of_a_recipe_exist_with_the_values_that_are_named(key):
    eval(key.text, vars(recipes))


@pytest.mark.parametrize("key", YAML, ids=str)
def test_a_yaml_key_exists_and_the_model_knows_it(key, configs):
    path, _, _ = key.text.partition(" ")
    cfg = configs[key.config]
    node = cfg
    for name in path.split("."):
        node = node[name]
    if path.startswith("MODEL.DETR.") and key.text not in OF_DEFORMABLE_DETR:
        assert path.split(".")[2].lower() in recipe_options(cfg.MODEL.META_ARCHITECTURE)


# The page of MMDetection names these for its Deformable DETR, among keys of DINO.
OF_DEFORMABLE_DETR = {"MODEL.DETR.BOX_REFINEMENT", "MODEL.DETR.TWO_STAGE"}


def test_pages_name_many_keys():
    assert len(PAGES) == 4
    assert min(len(LAZY), len(YAML)) > 50


@pytest.mark.parametrize("missing", ["model.selector.budget.keepratio", "train.epochs", "model.criterion.alpha"])
def test_a_lazy_key_that_does_not_exist_is_noticed(missing):
    with pytest.raises(KeyError):
        check_lazy(model_zoo.get_config("SparseDETR/sparse_detr_r50_rho30.py"), missing)


def own_fields(config):
    transformers = pytest.importorskip("transformers")
    base = vars(transformers.PreTrainedConfig()) | {"backbone_config": None}
    own = set(vars(config())) - set(base) | {"backbone_config"}
    return {name for name in own if not name.startswith("_")} - {"is_encoder_decoder"}


def fields_on_the_page():
    page = next(page for page in PAGES if page.stem == "transformers").read_text(encoding="utf-8")
    return {name for line in page.splitlines() for name in re.findall(r"`(\w+)`", line.partition(" | ")[0])}


@pytest.mark.parametrize("name", ["DeformableDetrConfig", "DetrConfig", "ConditionalDetrConfig"])
def test_the_page_of_transformers_names_every_field_of_a_config(name):
    transformers = pytest.importorskip("transformers")
    missing = own_fields(getattr(transformers, name)) - fields_on_the_page()
    assert not missing
