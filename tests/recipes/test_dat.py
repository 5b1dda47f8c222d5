"""DAT as the backbone of every family, its published counts, and its checkpoint files."""

import json

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from sparse_detr import recipes
from sparse_detr.backbones import DAT
from sparse_detr.checkpoint import convert_checkpoint
from sparse_detr.errors import UserError
from sparse_detr.recipes import BackboneSpec, dat
from tests.golden.cases import FOLDER
from tests.meta import meta_device
from tests.modeling.tiny import MODELS, SIZES, picture

NARROW = dict(embed_dim=8, num_heads=[1, 2, 4, 8], num_groups=[1, 1, 2, 4], blocks=["L", "LS", "LD", "LD"])


def narrow(num_maps):
    network = L(DAT)(**NARROW, image_size=64, drop_path_rate=0.1, out_indices=list(range(4 - num_maps, 4)))
    return BackboneSpec(network, ("p1", "p2", "p3")[-num_maps:], (16, 32, 64)[-num_maps:], (8, 16, 32)[-num_maps:])


@pytest.mark.parametrize("name", ["one_stage", "sparse", "dino", "focus", "dab"])
def test_a_step_of_training_reaches_every_block_of_a_dat(name):
    recipe, options = MODELS[name]
    options = {**SIZES, **options, "backbone": narrow(1 if name == "dab" else 3)}
    if name == "dab":  # of the stub in MODELS, which is made for another backbone
        recipe = recipes.dab_detr
        del options["num_points"]
    torch.manual_seed(0)
    model = instantiate(recipe(**options)).train()
    sum(model([picture(70, 90), picture(64, 50)]).values()).backward()
    without = {key for key, p in model.backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert not without
    for stage in model.backbone.stages:
        assert all(attention.proj_out.weight.grad.norm() > 0 for attention in stage.attns)


# without the classifier and its norm
@pytest.mark.parametrize(
    ("size", "image_size", "parameters"),
    [("tiny", 224, 27_548_602), ("small", 224, 48_929_866), ("base", 224, 86_854_584), ("base", 384, 87_151_224)],
)
def test_parameters_are_those_of_the_public_networks(size, image_size, parameters):
    with meta_device():
        model = instantiate(dat(size, image_size=image_size).config)
    norms = sum(p.numel() for p in model.norms.parameters())
    assert sum(p.numel() for p in model.parameters()) - norms == parameters


def file_of(case, prefix=""):
    rows = json.loads((FOLDER / "backbones" / case / "checkpoint_keys.json").read_text())
    return {prefix + name: torch.zeros(()).expand(shape) for name, shape, *_ in rows}


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_imagenet_weights_are_converted_and_name_their_backbone(prefix):
    weights = {
        name: value for name, value in file_of("dat_tiny_2022_release", prefix).items() if "backbone.cls" not in name
    }
    converted = convert_checkpoint({"model": weights})
    assert (converted.source, converted.description.backbone, converted.unknown) == ("dat", 'dat("tiny")', ())
    assert all(name.endswith(("position_index", "attn_mask")) or "cls_" in name for name in converted.dropped)
    with meta_device():
        model = instantiate(eval(converted.description.backbone, vars(recipes)).config)
    missing = {f"backbone.{name}" for name in model.state_dict()} - set(converted.state_dict)
    assert {name.split(".")[1] for name in missing} == {"norms"}  # which only detectors have
    assert set(converted.state_dict) <= {f"backbone.{name}" for name in model.state_dict()}


def test_the_window_tells_the_image_size_of_a_file():
    weights = file_of("dat_tiny_2022_release")
    weights["patch_proj.0.weight"] = torch.zeros(()).expand(128, 3, 4, 4)
    weights |= {f"stages.2.attns.{i}.proj_out.bias": torch.zeros(512) for i in range(18)}
    weights["stages.0.attns.0.relative_position_bias_table"] = torch.zeros(529, 4)
    assert convert_checkpoint({"model": weights}).description.backbone == 'dat("base", image_size=384)'


def test_a_file_of_dat_plus_plus_is_not_taken_for_a_dat():
    weights = {"patch_proj.0.weight": torch.zeros(32, 3, 3, 3), "stages.0.attns.0.rpb": torch.zeros(2, 13, 13)}
    with pytest.raises(UserError, match="unknown kind of checkpoint"):
        convert_checkpoint({"model": weights})
