"""DAT gives what the public code gave: maps, logits and gradients of stored cases (tests/golden/backbones)."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from sparse_detr.backbones.dat import DAT, DeformedKeyAttention
from sparse_detr.backbones.dat.deformed_keys import ChannelNorm
from tests.golden import cases

FOLDER = cases.FOLDER / "backbones"
ATTENTION = sorted(path.name for path in FOLDER.glob("dat_attention_*"))
NETS = ["dat_tiny_2022_release", "dat_tiny_2022"]
DETECTION = "dat_detection_backbone_windows"
CONVENTION = {"June 2022": "2022", "September 2023": "2023", "DAT-Detection, September 2023": "2023"}
COMPUTED = ("relative_position_index", "attn_mask")  # buffers of the public code


@cache
def facts(name):
    return json.loads((FOLDER / name / "case.json").read_text())


def outputs(name):
    with np.load(FOLDER / name / "outputs.npz") as arrays:
        return {key: torch.from_numpy(arrays[key]).double() for key in arrays.files}


def fill(model, name):
    """Load the weights of a case; all must fit."""
    rows = json.loads((FOLDER / name / "checkpoint_keys.json").read_text())
    weights = {
        key: torch.from_numpy(np.asarray(cases.weight(source, tuple(shape))))
        for key, shape, source, *_ in rows
        if not key.endswith(COMPUTED)
    }
    model.load_state_dict(weights)
    return model.double().eval()


def check_gradients(model, name):
    """Gradient norms agree; those of exact zeros (the bias of keys) are left to rounding."""
    expected = facts(name)["grad_norms"]
    found = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("name", ATTENTION)
def test_deformed_key_attention_is_that_of_the_public_code(name):
    case, expected = facts(name), outputs(name)
    channels = case["heads"] * case["head_channels"]
    model = DeformedKeyAttention(
        channels=channels,
        num_heads=case["heads"],
        num_groups=case["groups"],
        map_size=case["q_size"],
        kernel_size=case.get("ksize") or (9, 7, 5, 3)[case["stage_idx"]],
        stride=case["stride"],
        range_factor=case["offset_range_factor"],
        position="convolution" if case["dwc_pe"] else "table",
        convention=CONVENTION[case["code"]],
    )
    fill(model, name)
    batch, height, width = case["input"]
    x = cases.generator("attention_input").standard_normal((batch, channels, height, width))
    x = torch.from_numpy(x).requires_grad_()
    y, points = model(x), model.points(model.proj_q(x))
    y.square().mean().backward()
    for found, key in (
        (y, "y"),
        (points.moved, "pos"),
        (points.grid.expand_as(points.moved), "ref"),
        (x.grad, "grad_x"),
    ):
        assert_close(found, expected[key], rtol=0, atol=1e-6)
    check_gradients(model, name)


def normalised_image(size):
    mean, std = torch.tensor([123.675, 116.280, 103.530]), torch.tensor([58.395, 57.120, 57.375])
    return ((cases.image("image0", *size) - mean.view(3, 1, 1)) / std.view(3, 1, 1).double())[None]


def backbone(name):
    config = facts(name)["config"]
    return DAT(
        embed_dim=config["dim_stem"],
        blocks=["".join(kinds) for kinds in config["stage_spec"]],
        num_heads=config["heads"],
        num_groups=config["groups"],
        image_size=config["img_size"],
        kernel_sizes=config.get("ksizes", (9, 7, 5, 3)),
        convention=CONVENTION[facts(name)["code"]],
        out_indices=range(4),
    )


@pytest.mark.parametrize("name", NETS)
def test_dat_tiny_is_that_of_the_public_code(name):
    expected = outputs(name)
    model = backbone(name)
    model.norms = nn.ModuleDict({str(i): nn.Identity() for i in range(4)})  # the classifier has none
    model.cls_norm, model.cls_head = ChannelNorm(model.channels[-1]), nn.Linear(model.channels[-1], 1000)
    maps = fill(model, name)(normalised_image(facts(name)["image"]))
    logits = model.cls_head(model.cls_norm(maps["p3"]).mean((2, 3)))
    logits.square().mean().backward()
    assert_close(logits, expected["logits"], rtol=0, atol=1e-5)
    for i in range(4):
        assert_close(maps[f"p{i}"][:, ::8], expected[f"stage{i}"], rtol=0, atol=1e-5)
    check_gradients(model, name)


def test_a_detection_backbone_pads_windows_and_stretches_tables_as_the_public_code():
    expected = outputs(DETECTION)
    model = fill(backbone(DETECTION), DETECTION)
    maps = model(normalised_image(facts(DETECTION)["image"]))
    sum(map_.square().mean() for map_ in maps.values()).backward()
    for i in range(4):
        assert_close(maps[f"p{i}"][:, ::4], expected[f"map{i}"], rtol=0, atol=1e-5)
    check_gradients(model, DETECTION)
