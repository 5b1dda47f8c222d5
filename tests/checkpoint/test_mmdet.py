"""Files of MMDetection give here what MMDetection gives.

`mmdet/` holds small models of MMDetection 3.3 (one encoder layer, two decoder layers, ResNet-50): the names and shapes
of their entries, and their outputs in float64 for weights and images that the rule of `tests/golden/cases.py` makes.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

from sparse_detr.checkpoint import convert_checkpoint
from sparse_detr.checkpoint.mmdet_names import training_arguments
from sparse_detr.config import model_config
from tests.golden.cases import GoldenCase, image

FOLDER = Path(__file__).parent / "mmdet"


def read_case(name):
    """Return the file that MMDetection would have saved, its images, and the outputs."""
    facts = json.loads((FOLDER / f"{name}.json").read_text())
    weights = {public: GoldenCase.entry(shape, source, *fixed) for public, shape, source, *fixed in facts["rows"]}
    images = [image(f"image{i}", *size) for i, size in enumerate(facts["image_sizes"])]
    with np.load(FOLDER / f"{name}.npz") as arrays:
        outputs = {key: torch.from_numpy(arrays[key]) for key in arrays.files}
    return {"state_dict": weights, "meta": {"cfg": facts["cfg"], "epoch": 50}}, images, outputs


@pytest.mark.parametrize(
    ("name", "source", "expected", "tolerance"),
    [
        ("deformable", "mmdet_deformable_detr", {"two_stage": "off", "box_refinement": False}, 1e-5),
        ("refine", "mmdet_deformable_detr", {"two_stage": "off", "box_refinement": True}, 1e-5),
        ("two_stage", "mmdet_deformable_detr", {"two_stage": "projected", "num_queries": 7}, 1e-5),
        ("detr", "mmdet_detr", {"num_queries": 7, "num_classes": 5}, 1e-6),
        ("conditional", "mmdet_conditional_detr", {"num_queries": 7, "num_classes": 5}, 1e-6),
        ("dino", "mmdet_dino", {"shared_heads": False, "position_temperature": 20.0, "num_classes": 5}, 1e-5),
    ],
)
def test_a_file_gives_the_same_outputs(name, source, expected, tolerance):
    file, images, outputs = read_case(name)
    converted = convert_checkpoint(file)
    assert (converted.source, converted.unknown) == (source, ())
    assert expected.items() <= converted.description.arguments.items()
    model = instantiate(model_config(converted.description))
    model.load_state_dict(converted.state_dict, strict=True)
    model.double().eval()
    for statistic, numbers in (("pixel_mean", (123.675, 116.28, 103.53)), ("pixel_std", (58.395, 57.12, 57.375))):
        getattr(model, statistic).copy_(
            torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)
        )  # not rounded to float32
    with torch.no_grad():
        found = model.outputs([{"image": picture} for picture in images], attention_map=False).predictions
    assert (found.logits - outputs["pred_logits"]).abs().max() < tolerance
    assert (found.boxes - outputs["pred_boxes"]).abs().max() < tolerance


def test_averaged_weights_are_known_to_be_the_plain_ones():
    file, _, _ = read_case("detr")
    before = {f"module.{name}": value for name, value in file["state_dict"].items()}
    noted = str(convert_checkpoint(file | {"ema_state_dict": {"steps": torch.zeros(1), **before}}))
    assert "MMDetection saves averaged weights as state_dict; those before averaging" in noted


def test_the_configuration_in_a_file_is_read_but_not_run():
    text = "import os\nlr = 1\nmodel = dict(num_queries=900, backbone=dict(depth=50, dilations=(1, 1, 1, 2)))\n"
    assert training_arguments({"cfg": text}) == {"num_queries": 900, "dilation": True}
    assert training_arguments({"cfg": "model = dict(num_queries=7, backbone=dict(depth=50))"})["dilation"] is False
    for other in ({}, None, {"cfg": 3}, {"cfg": "model = open('x')"}, {"cfg": "model = ("}):
        assert training_arguments(other) == {}
