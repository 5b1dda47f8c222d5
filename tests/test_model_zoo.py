"""Configs and models by name."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from omegaconf import DictConfig

from sparse_detr import model_zoo
from sparse_detr.errors import UserError

QUICK = "quick/sparse_detr_mnv2.py"


@pytest.mark.parametrize(
    "name", ["SparseDETR/sparse_detr_r50_rho10.py", "projects/SparseDETR/configs/sparse_detr_r50_rho10.py", QUICK]
)
def test_a_config_is_found_with_and_without_its_folders(name):
    assert model_zoo.get_config_file(name).endswith(name.rpartition("/")[2])


def test_both_kinds_of_config_are_read():
    assert isinstance(model_zoo.get_config("DeformableDETR/deformable_detr_r50.yaml"), CfgNode)
    assert isinstance(model_zoo.get_config("DeformableDETR/deformable_detr_r50.py"), DictConfig)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"no config 'SparseDETR/other.py'; there are .*SparseDETR/sparse_detr_r50_rho10.py"
    ):
        model_zoo.get_config_file("SparseDETR/other.py")


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_an_empty_name_is_no_config(name):
    with pytest.raises(UserError, match=f"no config '{name}'; there are"):
        model_zoo.get_config_file(name)


def test_an_unknown_project_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"DABDETR/\.\.\., .*DINO/\.\.\., .*FocusDETR/\.\.\."):
        model_zoo.get_config_file("YOLO/x.py")


@pytest.mark.parametrize(
    "name", ["DINO/dino_r50_5scale_36ep.py", "FocusDETR/focus_detr_r50_36ep.yaml", "DABDETR/dab_detr_r50_dc5.py"]
)
def test_every_model_of_the_family_has_a_config(name):
    assert model_zoo.get_config(name) is not None


def test_all_names_are_listed_and_found():
    names = model_zoo.names()
    assert {QUICK, "SparseDETR/sparse_detr_r50_finetune.py", "DINO/dino_r50_4scale_12ep.yaml"} <= set(names)
    assert not [name for name in names if name.startswith(("common/", "quick/trees"))]
    assert [Path(model_zoo.get_config_file(name)).name for name in names] == [name.partition("/")[2] for name in names]


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "SparseDETR/sparse_detr_r50_rho10.yaml",
            r"use .*MODEL.DETR.KEEP_RATIO 0.1 .*SparseDETR/sparse_detr_r50_rho10.py",
        ),
        ("SparseDETR/efficient_detr_r50.py", "is now SparseDETR/deformable_detr_topk_r50.py"),
    ],
)
def test_for_a_removed_config_the_successor_is_named(name, answer):
    with pytest.raises(UserError, match=f"^{name} .*{answer}$"):
        model_zoo.get_config(name)


def test_trained_weights_are_not_hosted_and_the_remedy_is_named():
    with pytest.raises(UserError, match="sparse-detr convert"):
        model_zoo.get(QUICK, trained=True)


def test_given_weights_are_loaded_unless_they_are_of_other_classes(tmp_path):
    model = model_zoo.get(QUICK, device="cpu")
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    torch.save({"model": weights}, tmp_path / "good.pth")
    other = model_zoo.get(QUICK, device="cpu", weights=str(tmp_path / "good.pth"))
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
    for name in list(weights):
        if ".class_embed." in name:
            weights[name] = torch.cat([weights[name]] * 3)
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="3 classes and the model 1"):
        model_zoo.get(QUICK, device="cpu", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("options", [{"weights": ""}, {"ema": True}])
def test_empty_weights_are_refused(options):
    with pytest.raises(UserError, match="no checkpoint is named"):
        model_zoo.get(QUICK, **options)


def test_averaged_weights_are_loaded_on_request_and_must_be_finite(tmp_path):
    model = model_zoo.get(QUICK, device="cpu")
    averaged = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    averaged["module.tokenizer.level_embed"].fill_(3)
    torch.save({"model": model.state_dict(), "ema": averaged}, tmp_path / "both.pth")
    loaded = model_zoo.get(QUICK, device="cpu", weights=str(tmp_path / "both.pth"), ema=True)
    assert loaded.tokenizer.level_embed.unique().tolist() == [3]
    averaged["module.tokenizer.level_embed"].fill_(float("inf"))
    torch.save({"ema": averaged}, tmp_path / "infinite.pth")
    with pytest.raises(UserError, match=r"infinite values in 1 of \d+ tensors: tokenizer.level_embed"):
        model_zoo.get(QUICK, device="cpu", weights=str(tmp_path / "infinite.pth"), ema=True)
