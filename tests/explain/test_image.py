"""True objects are searched for on the device of the model, wherever they were read."""

import numpy as np
import pytest
import torch

from sparse_detr.explain import Choices, Target, explain_image
from tests.modeling.tiny import build, picture

TRUE = Target(torch.tensor([10.0, 10, 60, 70]), 0, area=2000.0)


def test_a_target_on_another_device_is_the_same_object():
    moved = TRUE.to(torch.device("meta"))
    assert moved.box.device.type == "meta"
    assert (moved.label, moved.score, moved.query, moved.area) == (0, None, None, 2000.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_an_image_with_true_objects_is_explained_on_every_device(device, monkeypatch):
    devices, move = [], Target.to
    monkeypatch.setattr(Target, "to", lambda target, device: devices.append(device) or move(target, device))
    item = picture(96, 128)
    image = np.ascontiguousarray(item["image"].cpu().numpy().transpose(1, 2, 0))
    models = [build("sparse", seed=seed, dtype=torch.float32).eval().to(device) for seed in (0, 1)]
    story = explain_image(
        models[0],
        item,
        image,
        name="made up",
        choices=Choices(score_threshold=0.005, count=1, draws=1, budgets=(0.1, 1.0), rounds=0),
        truth=[TRUE],
        other=(models[1], item),
    )
    assert [kind.type for kind in devices] == [device]
    assert [target.box.device.type for target in story.truth] == [device]
    assert [row.target for row in story.found] == story.truth
