"""Rivals: the same weights in `transformers` give our outputs; others are time only and say so."""

import pytest
import torch
from detectron2.config import instantiate

from sparse_detr.benchmark.rivals import RF_DETR, Reference, RfDetrDetector, make_rival, require, transformers_rival
from sparse_detr.benchmark.timing import PartTimer
from sparse_detr.errors import UserError
from sparse_detr.recipes import conditional_detr, deformable_detr, detr, resnet, sparse_detr
from tests.modeling.tiny import SIZES, picture, shake

DETR_SIZES = {name: value for name, value in SIZES.items() if name != "num_points"}
SAME = {
    "one_stage": lambda: deformable_detr(**SIZES, behavior="released"),
    "two_stage_dilated": lambda: deformable_detr(
        **SIZES, backbone=resnet(50, dilation=True), box_refinement=True, two_stage="projected", behavior="released"
    ),
    "detr": lambda: detr(**DETR_SIZES),
    "conditional_detr": lambda: conditional_detr(**DETR_SIZES),
}


def reference(config, *, is_trained=True, name="ours"):
    torch.manual_seed(0)
    model = instantiate(config)
    shake(model, 0.02)
    images = [picture(96, 72), picture(64, 96)]
    return Reference(name, model.eval(), "RGB", is_trained, "cpu", images)


@pytest.mark.parametrize("name", SAME)
def test_transformers_gives_our_outputs_with_our_weights(name):
    pytest.importorskip("transformers")
    ours = reference(SAME[name]())
    before = {key: value.clone() for key, value in ours.model.state_dict().items()}
    rival = transformers_rival(ours)
    assert rival.note.startswith("our weights; largest difference of logits and boxes ")
    assert float(rival.note.split()[-1]) < 1e-5
    assert rival.is_trained
    assert all(torch.equal(value, before[key]) for key, value in ours.model.state_dict().items())
    found, expected = rival.detect(ours.images), ours.model(ours.images)
    for mine, other in zip(expected, found, strict=True):
        assert torch.allclose(mine["instances"].scores, other["instances"].scores, atol=1e-4)
        assert other["instances"].image_size == mine["instances"].image_size
    times = PartTimer(rival.modules())(lambda: rival.detect(ours.images))
    assert set(times) == {"backbone", "tokenizer", "encoder", "decoder", "rest"}
    assert min(times.values()) > 0
    if name == "one_stage":
        flops = rival.gigaflops(ours.images[0])
        assert min(flops["backbone"], flops["encoder"], flops["decoder"]) > 0


def test_a_model_that_transformers_lacks_is_timed_against_its_dense_one():
    pytest.importorskip("transformers")
    rival = transformers_rival(reference(sparse_detr(**SIZES), name="sparse"))
    assert rival.note.startswith("dense Deformable DETR with random weights, time only: it has no sparse (")
    assert not rival.is_trained
    config = rival.model.public.config
    assert (config.d_model, config.encoder_layers, config.decoder_layers) == (64, 3, 2)
    assert (config.encoder_n_points, config.num_labels, config.num_feature_levels) == (2, 5, 4)
    assert config.encoder_attention_heads == 4
    (found,) = rival.detect([picture(64, 64)])
    assert len(found["instances"]) == SIZES["num_queries"] * 5


def test_a_name_that_is_unknown_is_refused():
    ours = Reference("ours", torch.nn.Identity(), "RGB", False, "cpu", [])
    with pytest.raises(UserError, match="--rival yolo is unknown; give transformers, detectron2:CONFIG, rf-detr-nano"):
        make_rival("yolo", ours)
    with pytest.raises(UserError, match="--rival detectron2: is unknown"):
        make_rival("detectron2:", ours)
    with pytest.raises(UserError, match="there is no such file, nor such a config in Detectron2's model zoo"):
        make_rival("detectron2:COCO-Detection/none.yaml", ours)
    with pytest.raises(UserError, match="a Identity is Detectron2's; leave it out"):
        transformers_rival(ours)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("sparse_detr.benchmark.rivals.find_spec", lambda name: None)
    ours = Reference("ours", torch.nn.Identity(), "RGB", False, "cpu", [])
    for name, package in [("transformers", "transformers"), *((name, "rfdetr") for name in RF_DETR)]:
        with pytest.raises(UserError, match=f"--rival {name} needs the package {package}; install it: pip install"):
            make_rival(name, ours)


def test_a_package_that_cannot_be_imported_is_named_with_the_cause(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'requests'")

    monkeypatch.setattr("sparse_detr.benchmark.rivals.find_spec", lambda name: object())
    monkeypatch.setattr("sparse_detr.benchmark.rivals.import_module", fail)
    with pytest.raises(UserError, match=r"cannot be imported \(No module named 'requests'\); install it with all that"):
        require("rfdetr", "rf-detr-nano")


def test_an_old_rfdetr_without_the_model_is_named(monkeypatch):
    monkeypatch.setattr("sparse_detr.benchmark.rivals.require", lambda package, option: object())
    ours = Reference("ours", torch.nn.Identity(), "RGB", False, "cpu", [])
    with pytest.raises(UserError, match="this rfdetr has no RFDETRSmall; update it: pip install -U rfdetr"):
        make_rival("rf-detr-small", ours)


class Squares(torch.nn.Module):
    """Stands for a network of RF-DETR: it answers with the mean of the image's colours."""

    def forward(self, pixels):
        boxes = torch.full((len(pixels), 2, 4), 0.5)
        return {"pred_logits": pixels.mean((2, 3))[:, None].expand(-1, 2, -1), "pred_boxes": boxes}


def test_rf_detr_gets_squares_of_its_own_size():
    model = RfDetrDetector(Squares(), side=32)
    white = {"image": torch.full((3, 40, 60), 255, dtype=torch.uint8)}
    (resized,) = model.resize([white])
    assert resized["image"].shape == (3, 32, 32)
    (found,) = model([resized])
    # (1 - mean) / std of blue is the largest of the three colours
    assert found["instances"].scores[0] == pytest.approx(torch.tensor((1 - 0.406) / 0.225).sigmoid().item())
    assert found["instances"].pred_classes[0] == 2
    assert found["instances"].pred_boxes.tensor[0].tolist() == [8, 8, 24, 24]


class Traced(Squares):
    """Stands for the traced form of RF-DETR, which answers with a tuple."""

    def forward(self, pixels):
        found = super().forward(pixels)
        return found["pred_boxes"], found["pred_logits"]


def test_the_traced_form_of_rf_detr_gives_the_same_detections_in_the_pixels_of_the_image():
    image = {"image": torch.rand(3, 40, 60) * 255, "height": 400, "width": 600}
    found = [
        model(model.resize([image]))[0]["instances"]
        for model in (RfDetrDetector(Squares(), 32), RfDetrDetector(Traced(), 32))
    ]
    assert torch.equal(found[0].scores, found[1].scores)
    assert found[1].image_size == (400, 600)
    assert found[1].pred_boxes.tensor[0].tolist() == [150, 100, 450, 300]


@pytest.mark.slow
def test_rf_detr_detects_in_our_images_without_a_download():
    pytest.importorskip("rfdetr")
    images = [picture(96, 72), picture(64, 96)]
    rival = make_rival("rf-detr-nano", Reference("ours", torch.nn.Identity(), "BGR", False, "cpu", images))
    assert rival.note.startswith("random weights, time only; its own size 384x384")
    assert set(rival.parts) == {"backbone", "transformer"}
    prepared = rival.prepare(images)
    assert [tuple(image["image"].shape) for image in prepared] == [(3, 384, 384)] * 2
    times = PartTimer(rival.modules())(lambda: rival.detect(prepared))
    assert min(times.values()) > 0
    assert [len(result["instances"]) for result in rival.detect(prepared)] == [300, 300]


@pytest.mark.slow
def test_a_model_of_detectron2_detects_in_our_images():
    ours = reference(sparse_detr(**SIZES))
    rival = make_rival("detectron2:COCO-Detection/retinanet_R_50_FPN_1x.yaml", ours)
    assert rival.name == "detectron2 retinanet_R_50_FPN_1x"
    assert set(rival.parts) == {"backbone", "head"}
    assert "random weights" in rival.note
    image = ours.images[0]
    (turned,) = rival.prepare([image])  # it was trained on BGR
    assert torch.equal(turned["image"], image["image"].flip(0))
    times = PartTimer(rival.modules())(lambda: rival.detect([turned]))
    assert min(times.values()) > 0
    assert rival.gigaflops(image)["head"] > 0
