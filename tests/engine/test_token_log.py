"""What a training logs of its tokens is right, and changes neither losses, weights nor random numbers."""

import itertools

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.structures import BoxMode
from omegaconf import OmegaConf
from PIL import Image

from sparse_detr.engine import token_log
from sparse_detr.engine.token_log import LogPictures, LogTokens, ValidationImage, load_validation_image
from sparse_detr.engine.training import train
from sparse_detr.errors import UserError
from tests.engine.toys import ToyDetector, toy_run, toy_trainer
from tests.modeling.tiny import build, picture


class Remember(HookBase):
    """Keeps what each iteration leaves in the event storage."""

    def __init__(self):
        self.latest, self.pictures = [], []

    def after_step(self):
        storage = self.trainer.storage
        now = {name: value for name, (value, at) in storage.latest().items() if at == self.trainer.iter}
        self.latest.append({name: value for name, value in now.items() if "time" not in name})
        self.pictures += storage._vis_data
        storage.clear_images()


def train_tiny(model, *hooks, iterations=4, loader=None, **options):
    """Train; return what each iteration left, and the next random number."""
    loader = loader or itertools.cycle([[picture(64, 96)], [picture(96, 64), picture(64, 96)]])
    trainer = toy_trainer(model.train(), loader=loader, lr=1e-3, **options)
    remember = Remember()
    trainer.register_hooks([*hooks, remember])
    torch.manual_seed(0)
    trainer.train(0, iterations)
    return remember, torch.rand(1).item()


def validation_image():
    inputs = picture(64, 96)
    boxes = inputs["instances"].gt_boxes.tensor.numpy()
    return ValidationImage(inputs, inputs["image"].permute(1, 2, 0).numpy(), boxes, [0, 1], ["cat", "dog"])


def test_logging_and_pictures_leave_losses_weights_and_random_numbers_as_they_are():
    plain, watched = (build("sparse", dtype=torch.float32, dropout=0.1) for _ in range(2))
    expected, next_random = train_tiny(plain)
    hooks = LogTokens(model=watched, period=1), LogPictures(model=watched, image=validation_image(), period=2)
    found, next_of_watched = train_tiny(watched, *hooks)
    for one, other in zip(expected.latest, found.latest, strict=True):
        assert one == {name: value for name, value in other.items() if not name.startswith("tokens/")}
    assert next_random == next_of_watched
    for one, other in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert watched.training
    assert [step for *_, step in found.pictures] == [1, 3]
    name, drawn, _ = found.pictures[0]
    assert name == "validation image"
    assert drawn.dtype == np.uint8
    assert drawn.shape[::2] == (3, 1000)


def test_tokens_are_measured_in_the_iterations_that_are_logged_and_in_the_last():
    model = build("sparse", dtype=torch.float32)
    found, _ = train_tiny(model, LogTokens(model=model, period=2), iterations=5)
    logged = [{name for name in latest if name.startswith("tokens/")} for latest in found.latest]
    levels = [f"correlation_level{level}" for level in (1, 2, 3, 4)]
    names = {f"tokens/{name}" for name in ("kept_share", "recall", "box_share", "correlation", *levels)}
    assert logged == [set(), names, set(), names, names]
    assert found.latest[1]["tokens/kept_share"] == pytest.approx(0.3, abs=0.02)
    assert not model.supervision._forward_pre_hooks


def test_a_dense_model_logs_that_it_keeps_all():
    model = build("topk", dtype=torch.float32)
    found, _ = train_tiny(model, LogTokens(model=model, period=1), iterations=1)
    tokens = {name: value for name, value in found.latest[0].items() if name.startswith("tokens/")}
    assert tokens == {"tokens/kept_share": 1.0, "tokens/recall": 1.0, "tokens/box_share": 1.0}


def test_a_model_without_tokens_logs_nothing_of_them(tmp_path):
    train(toy_run(tmp_path, model=ToyDetector(), log_period=2))
    text = (tmp_path / "metrics.json").read_text()
    assert "total_loss" in text
    assert "tokens/" not in text


class Mapper:
    """A mapper that marks what it has mapped."""

    image_format, value_range = "RGB", None

    def __call__(self, record):
        return {"mapped": record["file_name"]}


@pytest.fixture
def data_set(tmp_path, monkeypatch):
    """Register data whose first image has a crowd alone, whose second is missing, and whose third can be shown."""
    Image.fromarray(np.full((8, 9, 3), 7, np.uint8)).save(tmp_path / "good.png")
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    records = [
        {"file_name": str(tmp_path / name), "height": 8, "width": 9, "annotations": [annotation]}
        for name, annotation in (("good.png", {**box, "iscrowd": 1}), ("missing.png", box), ("good.png", box))
    ]
    DatasetCatalog.register("toy", lambda: records)
    MetadataCatalog.get("toy").thing_classes = ["cat", "dog"]
    monkeypatch.setattr(token_log, "build_test_mapper", lambda cfg: Mapper())
    yield records
    DatasetCatalog.remove("toy")
    MetadataCatalog.remove("toy")


def test_the_image_that_is_shown_is_the_first_with_boxes_that_can_be_read(tmp_path, data_set):
    image = load_validation_image(toy_run(tmp_path, scores=[1.0]))
    assert image.inputs == {"mapped": str(tmp_path / "good.png")}
    assert image.boxes.tolist() == [[1, 2, 4, 6]]
    assert (image.labels, image.class_names, image.image.shape) == ([1], ["cat", "dog"], (8, 9, 3))


def test_pictures_without_validation_data_or_boxes_are_an_error(tmp_path, data_set):
    with pytest.raises(UserError, match=r"there are no validation data; set train.vis_period=0, or name validation"):
        train(toy_run(tmp_path, vis_period=2))
    data_set.clear()
    run = toy_run(tmp_path, scores=[1.0], vis_period=2)
    assert OmegaConf.is_config(run.config)
    with pytest.raises(UserError, match="no image of toy has a true box"):
        train(run)
