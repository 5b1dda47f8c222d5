"""A predictor gives the detections of the evaluation, for images of every form, in any thread and process."""

import copy
import io
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from omegaconf import OmegaConf
from PIL import Image

from sparse_detr import Predictor
from sparse_detr.config import load_config
from sparse_detr.config.model import build_detector
from sparse_detr.data.augmentation import test_augmentations as resize
from sparse_detr.data.mapper import DetrDatasetMapper
from sparse_detr.errors import UserError
from sparse_detr.modeling.selection import LevelBudget
from sparse_detr.predictor import ImageError
from sparse_detr.recipes import deformable_detr, lite_deformable_detr, sparse_detr
from tests.modeling.tiny import NUM_CLASSES, SIZES, patch_backbone, shake

ROOT = Path(__file__).parents[1]
SIZES = {**SIZES, "encoder_layers": 2, "num_detections": 10}
YAML = f"""
_BASE_: {ROOT / "configs/Base-DETR.yaml"}
MODEL:
  META_ARCHITECTURE: SparseDETR
  BACKBONE: {{NAME: build_mobilenet_v2_backbone}}
  DETR: {{EMBED_DIM: 64, ENCODER_LAYERS: 1, DECODER_LAYERS: 1, NUM_LEVELS: 3, NUM_QUERIES: 10, FEEDFORWARD_DIM: 32}}
INPUT: {{MIN_SIZE_TEST: 64}}
"""


def make_config(recipe=sparse_detr, **mapper):
    """Return a lazy config of a tiny model whose mapper resizes to 64 pixels."""
    options = {"keep_ratio": 0.3} if recipe is sparse_detr else {}
    mapper = LazyCall(DetrDatasetMapper)(is_train=False, augmentations=LazyCall(resize)(short_size=64), **mapper)
    train = {"device": "cpu", "init_checkpoint": ""}
    return OmegaConf.create(
        {
            "model": recipe(backbone=patch_backbone(), **SIZES, **options),
            "dataloader": {"test": {"mapper": mapper}},
            "train": train,
        },
        flags={"allow_objects": True},
    )


def make_weights(cfg, path):
    torch.manual_seed(0)
    model = instantiate(cfg.model)
    shake(model)
    torch.save({"model": model.state_dict()}, path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with images of many kinds, and weights for a sparse and a dense model."""
    folder = tmp_path_factory.mktemp("predictor")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "rgb.png")
    Image.fromarray(pixels[:40, :40]).save(folder / "square.png")
    Image.fromarray(pixels[..., 0]).save(folder / "gray.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 200).save(folder / "gray16.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(folder / "alpha.png")
    Image.fromarray(pixels).quantize(16).save(folder / "palette.png")
    exif = Image.Exif()
    exif[0x112] = 6  # turned by 90 degrees
    Image.fromarray(pixels).save(folder / "turned.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"no image")
    make_weights(make_config(), folder / "sparse.pth")
    make_weights(make_config(deformable_detr), folder / "dense.pth")
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return Predictor(make_config(), folder / "sparse.pth")


@pytest.fixture(scope="module")
def yacs_predictor(folder):
    """Return a predictor of a yaml config, with a convolutional backbone."""
    (folder / "sparse.yaml").write_text(YAML)
    torch.manual_seed(0)
    model = build_detector(load_config(str(folder / "sparse.yaml")), device="cpu")
    shake(model, 0.02)
    torch.save({"model": model.state_dict()}, folder / "yacs.pth")
    return Predictor(folder / "sparse.yaml", folder / "yacs.pth")


def rows(instances):
    """Return the detections as (n, 6): box, score, class."""
    classes = instances.pred_classes[:, None]
    return torch.cat([instances.pred_boxes.tensor, instances.scores[:, None], classes], 1)


def assert_equal(one, other):
    assert one.image_size == other.image_size
    assert len(one) > 0
    assert torch.equal(rows(one), rows(other))


def pixels_of(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_import_does_not_import_detectron2():
    code = "import sys; from sparse_detr import Predictor; sys.exit('detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("name", ["rgb.png", "turned.jpg", "gray.png", "gray16.png", "alpha.png", "palette.png"])
def test_an_image_gives_the_detections_of_the_evaluation_to_the_last_bit(folder, name, image_format):
    cfg = make_config(image_format=image_format)
    model = instantiate(cfg.model).eval()
    model.load_state_dict(torch.load(folder / "sparse.pth", weights_only=True)["model"])
    sample = instantiate(cfg.dataloader.test.mapper)({"file_name": str(folder / name)})
    with torch.no_grad():
        expected = model([sample])[0]["instances"]

    assert_equal(Predictor(cfg, folder / "sparse.pth")(folder / name), expected)


def test_every_form_of_an_image_gives_the_same(predictor, folder):
    path = folder / "turned.jpg"
    upright = np.rot90(pixels_of(path), -1).copy()
    expected = predictor(path)
    tensor = torch.from_numpy(upright).permute(2, 0, 1)
    for image in (str(path), Image.open(path), upright, tensor, tensor.clone(), predictor.read(path)):
        assert_equal(predictor(image), expected)
    assert_equal(predictor(upright[:, :, ::-1], channel_order="BGR"), expected)
    assert_equal(predictor(tensor.flip(0), channel_order="BGR"), expected)
    assert_equal(predictor(Image.open(path), channel_order="BGR"), expected)


def test_gray_images_of_every_form_give_the_same(predictor, folder):
    gray, gray16 = (np.array(Image.open(folder / name)) for name in ("gray.png", "gray16.png"))
    for image in (gray, gray.view(np.matrix), gray[..., None], torch.from_numpy(gray), torch.from_numpy(gray)[None]):
        assert_equal(predictor(image), predictor(folder / "gray.png"))
    for image in (gray16, gray16.astype(">u2"), Image.open(folder / "gray16.png"), gray16.astype(np.float32) / 65535):
        assert_equal(predictor(image), predictor(folder / "gray16.png"))


def test_one_image_gives_instances_and_several_a_list(predictor, folder):
    paths = [folder / "rgb.png", folder / "square.png"]
    expected = [predictor(path) for path in paths]
    for images in (paths, tuple(paths), iter(paths), (predictor.read(path) for path in paths)):
        found = predictor(images)
        assert isinstance(found, list)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    assert predictor([]) == []


@pytest.mark.parametrize("batch_size", [2, 6])
def test_images_of_any_size_give_the_same_in_a_batch_as_alone(yacs_predictor, folder, batch_size):
    names = ("rgb.png", "square.png", "gray.png", "turned.jpg", "palette.png")
    images = [yacs_predictor.read(folder / name) for name in names]
    for batched, alone in zip(yacs_predictor(images, batch_size=batch_size), yacs_predictor(images), strict=True):
        assert batched.image_size == alone.image_size
        torch.testing.assert_close(rows(batched), rows(alone), atol=1e-4, rtol=1e-5)


def test_images_of_one_size_go_through_the_model_together(predictor, folder, monkeypatch):
    calls, model = [], predictor.model
    monkeypatch.setattr(predictor, "model", lambda inputs: calls.append(len(inputs)) or model(inputs))
    predictor([folder / name for name in ("rgb.png", "square.png", "gray.png", "palette.png")], batch_size=3)
    assert calls == [2, 1, 1]


def test_outputs_of_a_padded_batch_equal_those_of_its_images_unless_the_backbone_sees_the_padding(predictor, folder):
    paths = [folder / name for name in ("rgb.png", "square.png", "turned.jpg")]
    for batched, alone in zip(predictor.outputs(paths).instances, predictor(paths), strict=True):
        torch.testing.assert_close(rows(batched), rows(alone), atol=1e-4, rtol=1e-5)


def test_options_hold_for_one_call(predictor, folder):
    path = folder / "rgb.png"
    everything, median = predictor(path), predictor(path).scores.median().item()
    assert len(everything) == 10
    assert_equal(predictor(path, top_k=3), everything[:3])
    assert_equal(predictor(path, score_threshold=median), everything[everything.scores >= median])
    assert not torch.equal(rows(predictor(path, budget=1.0)), rows(everything))
    assert_equal(predictor(path), everything)


def test_a_budget_may_be_a_text_or_an_object(predictor, folder):
    def kept(budget):
        output = predictor.outputs(folder / "rgb.png", budget=budget).output
        return [level.float().mean().item() for level in output.pyramid.split(output.selection.keep)]

    assert kept("levels:0.25,0.5,1,1") == kept(LevelBudget(shares=(0.25, 0.5, 1, 1)))
    assert kept("levels:0.25,0.5,1,1") == pytest.approx([25 / 96, 13 / 24, 1, 1])  # int(96 / 4) + 1, int(24 / 2) + 1
    assert kept("1.0") == [1, 1, 1, 1]
    assert sum(kept("mass:0.5")) < sum(kept("mass:0.9")) < 4


def test_a_budget_in_milliseconds_is_the_best_measured_one(predictor, folder):
    rows = [
        {"budget": budget, "form": form, "scores": {"AP": score}, "milliseconds": {"p50": time}}
        for budget, form, score, time in [("0.1", "plain", 40, 10), ("0.3", "plain", 42, 20), ("1.0", "fp32", 44, 15)]
    ]
    table = folder / "sweep.json"
    table.write_text(json.dumps({"entries": rows}))
    image = folder / "rgb.png"
    assert_equal(predictor(image, budget=f"ms:25@{table}"), predictor(image, budget=0.3))
    assert_equal(predictor(image, budget=f"ms:15@{table}"), predictor(image, budget=0.1))
    with pytest.raises(UserError, match="every budget of .* takes longer; the fastest, 0.1, takes 10 ms"):
        predictor(image, budget=f"ms:5@{table}")
    with pytest.raises(UserError, match="sweep.json cannot be read .*; measure the budgets first: sparse-detr sweep"):
        predictor(image, budget="ms:25")


def test_options_of_the_predictor_are_defaults_of_its_calls(folder, predictor):
    chosen = Predictor(make_config(), folder / "sparse.pth", budget=0.8, top_k=2, score_threshold=0.01)
    expected = predictor(folder / "rgb.png", budget=0.8)
    assert_equal(chosen(folder / "rgb.png"), expected[:2])
    assert_equal(chosen(folder / "rgb.png", top_k=None), expected)
    assert_equal(chosen(folder / "rgb.png", budget=None, top_k=None), predictor(folder / "rgb.png"))


def test_outputs_hold_the_tensors_behind_the_detections(predictor, folder):
    found = predictor.outputs(folder / "rgb.png", budget=0.5, score_threshold=0.01)
    expected = predictor(folder / "rgb.png", budget=0.5, score_threshold=0.01)
    torch.testing.assert_close(rows(found.instances[0]), rows(expected), atol=1e-4, rtol=1e-5)
    assert found.inputs[0]["image"].shape == (3, 64, 96)
    assert found.output.selection.keep.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert found.output.attention_map is not None
    assert predictor.outputs(folder / "rgb.png", attention_map=False).output.attention_map is None
    assert len(predictor.outputs([folder / "rgb.png", folder / "square.png"]).instances) == 2


def test_threads_share_a_predictor(predictor, folder):
    calls = [(folder / name, ratio) for name in ("rgb.png", "square.png", "gray.png") for ratio in (0.2, 0.6, None)] * 3
    expected = [predictor(path, budget=ratio) for path, ratio in calls]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda call: predictor(call[0], budget=call[1]), calls))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


@torch.inference_mode()
def detect_in_inference_mode(predictor, path):
    return predictor(path)


def test_inference_mode_changes_nothing_before_or_after(folder, predictor):
    fresh = Predictor(make_config(), folder / "sparse.pth")
    for found in (detect_in_inference_mode(fresh, folder / "rgb.png"), fresh(folder / "rgb.png")):
        assert_equal(found, predictor(folder / "rgb.png"))


def test_a_pickled_predictor_is_small_and_gives_the_same(folder):
    predictor = Predictor(make_config(), folder / "sparse.pth", budget=0.6, class_names=list("abcde"))
    pickled = pickle.dumps(predictor)
    assert len(pickled) < 50_000 < (folder / "sparse.pth").stat().st_size
    for other in (pickle.loads(pickled), copy.deepcopy(predictor)):
        assert_equal(other(folder / "rgb.png"), predictor(folder / "rgb.png"))
        assert other.class_names == list("abcde")


def detect_in_process(predictor, path):
    return rows(predictor(path)).numpy()


def test_another_process_gives_the_same(folder, predictor):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(detect_in_process, (predictor, folder / "rgb.png"))
    assert torch.equal(torch.from_numpy(found), rows(predictor(folder / "rgb.png")))


def test_weights_that_have_changed_since_pickling_are_refused(tmp_path):
    weights = make_weights(make_config(), tmp_path / "x.pth")
    pickled = pickle.dumps(Predictor(make_config(), weights))
    make_weights(make_config(), weights)
    with pytest.raises(UserError, match="x.pth has changed since the predictor was pickled; make a new Predictor"):
        pickle.loads(pickled)


def test_the_code_of_the_documentation_runs(tmp_path, folder, monkeypatch, capsys):
    categories = [{"id": n, "name": f"class {n}"} for n in range(NUM_CLASSES)]
    (tmp_path / "own.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    cfg = make_config()
    cfg.train.own_data = {"train_json": "own.json"}
    (tmp_path / "output").mkdir()
    LazyConfig.save(cfg, str(tmp_path / "output/config.yaml"))
    shutil.copy(folder / "sparse.pth", tmp_path / "output/model_final.pth")
    shutil.copy(folder / "rgb.png", tmp_path / "street.jpg")
    monkeypatch.chdir(tmp_path)
    code = (ROOT / "docs/predictor.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("score_threshold=0.3", "score_threshold=0.02"), {})
    assert capsys.readouterr().out.startswith("class ")


WRONG_IMAGES = {
    "float pixels": (np.zeros((8, 8, 3)), r"image 1 is an array \(8, 8, 3\) of float64; give uint8"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), r"give \(H, W, 3\): transpose\(1, 2, 0\)"),
    "channels last": (torch.zeros(8, 8, 3, dtype=torch.uint8), r"give \(3, h, w\): permute\(2, 0, 1\)"),
    "alpha": (np.zeros((8, 8, 4), np.uint8), r"drop the alpha channel with image\[..., :3\]"),
    "alpha tensor": (torch.zeros(4, 8, 8, dtype=torch.uint8), r"drop the alpha channel with image\[:3\]"),
    "float tensor": (torch.zeros(3, 8, 8), r"image 1 is a tensor \(3, 8, 8\) of torch.float32; give uint8 with values"),
    "a batch": (
        np.zeros((2, 8, 8, 3), np.uint8),
        r"every image of a batch by itself, \(H, W, 3\): list",
    ),
    "a batch tensor": (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "give every image of a batch by itself"),
    "no pixel": (np.zeros((0, 8, 3), np.uint8), "so it has no pixel; leave it out"),
    "no image": (7, "image 1 is of type int; give a path, a PIL.Image, a NumPy array"),
    "a record": ({"file_name": "x.png"}, "image 1 is of type dict"),
    "bytes": (b"PNG", r"image 1 is of type bytes; give PIL.Image.open\(io.BytesIO\(data\)\)"),
    "nothing": (None, "image 1 is of type NoneType"),
    "absent": ("absent.png", "absent.png: no such file"),
    "a tensor without values": (
        torch.zeros(3, 8, 8, dtype=torch.uint8, device="meta"),
        "image 1 is a tensor .* on meta",
    ),
    "a sparse tensor": (torch.zeros(3, 8, 8, dtype=torch.uint8).to_sparse(), "give a dense one"),
    "an open file": (io.BytesIO(b"PNG"), r"image 1 is of type BytesIO; give PIL.Image.open\(file\)"),
    "a folder": (ROOT, "is a folder; name a file in it"),
    "wide floats": (np.full((8, 8), 300, np.float32), "image 1: a float image with values from 300 to 300"),
}


@pytest.mark.parametrize("kind", WRONG_IMAGES)
def test_a_wrong_image_is_named_with_the_remedy(predictor, folder, kind):
    image, message = WRONG_IMAGES[kind]
    with pytest.raises(ImageError, match=message):
        predictor([folder / "rgb.png", image])


def test_a_wrong_image_alone_is_refused_as_well(predictor, folder):
    with pytest.raises(ImageError, match="broken.png: not an image in a known format"):
        predictor(folder / "broken.png")
    for image in (
        7,
        None,
        {"file_name": "x.png"},
        b"PNG",
        bytearray(b"PNG"),
        io.BytesIO(b"PNG"),
        np.zeros((2, 8, 8, 3), np.uint8),
    ):
        with pytest.raises(ImageError, match="image 0"):
            predictor(image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 50}, "score_threshold 50 is no score; give a number from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold nan is no score"),
        ({"score_threshold": "high"}, "score_threshold 'high' is no score"),
        ({"budget": 0}, "budget 0 is no share; give a number above 0, at most 1"),
        ({"budget": 30}, "budget 30 is no share"),
        ({"keep_ratio": 0.3}, "keep_ratio=0.3 is called budget=0.3 now"),
        ({"budget": "mass:2"}, "budget: mass must be above 0 and at most 1, got 2"),
        ({"budget": "levels"}, "budget: 'levels' is no budget; give a share of the tokens like 0.3"),
        ({"budget": "levels:0.5,1"}, "budget levels:0.5,1 has 2 shares, but this model 4 levels"),
        ({"budget": "0.3+layers:2"}, "'layers:2' is no budget; .*; decoder:2 and queries:100 set layers and queries"),
        ({"budget": "ms:fast"}, "budget 'ms:fast' is no time; give milliseconds above 0 like ms:30"),
        ({"top_k": 0}, "top_k 0 cannot be used; give a whole number, 1 or more"),
        (
            {"top_k": 11},
            "top_k is 11, but .* at most 10 detections; set model.postprocess.num_detections=11",
        ),
        ({"batch_size": 1.5}, "batch_size 1.5 cannot be used"),
        ({"top_k": 2.0}, "top_k 2.0 cannot be used; give a whole number"),
        ({"channel_order": "rgb"}, "channel_order is 'rgb'; give RGB or BGR"),
        ({"threshold": 0.5}, "there is no option 'threshold'; there are score_threshold, top_k"),
    ],
)
def test_a_wrong_option_is_named_with_the_allowed_values(predictor, folder, options, message):
    with pytest.raises(UserError, match=message):
        predictor(folder / "rgb.png", **options)
    with pytest.raises(UserError, match=message):
        Predictor(make_config(), folder / "sparse.pth", **options)


def test_numbers_of_numpy_are_numbers(predictor, folder):
    found = predictor(folder / "rgb.png", top_k=np.int64(2), budget=np.float32(0.5), score_threshold=np.float32(0))
    assert_equal(found, predictor(folder / "rgb.png", top_k=2, budget=0.5))


def test_read_refuses_another_channel_order(predictor):
    with pytest.raises(UserError, match="channel_order is 'rgb'; give RGB or BGR"):
        predictor.read(np.zeros((8, 8, 3), np.uint8), channel_order="rgb")


def test_outputs_say_what_they_cannot_give(predictor, folder, monkeypatch):
    with pytest.raises(UserError, match="there is no image; give one or more"):
        predictor.outputs([])
    monkeypatch.setattr(predictor, "model", torch.nn.Identity())
    with pytest.raises(UserError, match="a Identity gives detections alone; call the predictor itself"):
        predictor.outputs(folder / "rgb.png")


def test_a_dense_model_has_no_budget(folder):
    dense = Predictor(make_config(deformable_detr), folder / "dense.pth")
    assert_equal(dense(folder / "rgb.png", budget=1.0), dense(folder / "rgb.png"))
    with pytest.raises(UserError, match="budget is 0.5, but this model has a dense encoder"):
        dense(folder / "rgb.png", budget=0.5)
    with pytest.raises(UserError, match="budget is 0.5, but this model has a dense encoder"):
        Predictor(make_config(deformable_detr), folder / "dense.pth", budget=0.5)


def test_a_model_that_selects_levels_has_no_budget(folder, tmp_path):
    cfg = make_config(partial(lite_deformable_detr, high_levels=1, blocks=1))
    levels = Predictor(cfg, make_weights(cfg, tmp_path / "levels.pth"))
    assert not levels.is_dense
    assert len(levels(folder / "rgb.png"))
    for share in (0.5, 1.0):
        with pytest.raises(UserError, match=f"budget is {share}, but this model refines levels, not a share"):
            levels(folder / "rgb.png", budget=share)


def test_configs_of_every_kind_are_accepted(folder, tmp_path, predictor):
    cfg = make_config()
    before = copy.deepcopy(cfg)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    for config in (cfg, tmp_path / "config.yaml", str(tmp_path / "config.yaml")):
        assert_equal(Predictor(config, folder / "sparse.pth")(folder / "rgb.png"), predictor(folder / "rgb.png"))
    assert cfg == before


def test_a_yaml_config_is_accepted_and_not_changed(yacs_predictor, folder):
    cfg = load_config(str(folder / "sparse.yaml"))
    before = cfg.dump()
    cfg.freeze()
    other = Predictor(cfg, folder / "yacs.pth")
    for same in (other, pickle.loads(pickle.dumps(other))):
        assert_equal(same(folder / "rgb.png"), yacs_predictor(folder / "rgb.png"))
    assert cfg.dump() == before
    assert yacs_predictor.class_names[0] == "person"  # of its data set, COCO
    with pytest.raises(UserError, match="set TEST.DETECTIONS_PER_IMAGE 999"):
        yacs_predictor(folder / "rgb.png", top_k=999)


def test_a_name_of_the_model_zoo_is_accepted(folder):
    with pytest.raises(UserError, match="no entry of the checkpoint|belongs to another model"):
        Predictor("quick/sparse_detr_mnv2.py", folder / "sparse.pth")
    with pytest.raises(UserError, match="there is no file 'SparseDETR/nowhere.py' .*, and no config"):
        Predictor("SparseDETR/nowhere.py", folder / "sparse.pth")


@pytest.mark.parametrize("config", [{"model": 1}, 7, None])
def test_what_is_no_config_is_refused(folder, config):
    with pytest.raises(UserError, match="a config is a DictConfig .lazy. or a CfgNode .yacs., not a"):
        Predictor(config, folder / "sparse.pth")


def test_without_weights_those_of_the_config_are_loaded(folder, predictor, tmp_path):
    cfg = make_config()
    with pytest.raises(UserError, match="no weights are named; give weights=FILE"):
        Predictor(cfg)
    with pytest.raises(UserError, match="weights is a dict; give the path of a checkpoint"):
        Predictor(cfg, {})
    cfg.train.init_checkpoint = str(folder / "sparse.pth")
    assert_equal(Predictor(cfg)(folder / "rgb.png"), predictor(folder / "rgb.png"))
    weights = torch.load(folder / "sparse.pth", weights_only=True)["model"]
    backbone = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="backbone alone.*give the trained weights: weights=FILE"):
        Predictor(cfg, tmp_path / "backbone.pth")


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("selector.", r"lacks \d+ weights of the model, which would be random: selector.scorer.*give the config"),
        ("decoder.layers.1.", "lacks .*: decoder.layers.1."),
    ],
)
def test_weights_that_lack_a_part_are_refused(folder, tmp_path, part, message):
    weights = torch.load(folder / "sparse.pth", weights_only=True)["model"]
    torch.save({"model": {k: v for k, v in weights.items() if not k.startswith(part)}}, tmp_path / "part.pth")
    with pytest.raises(UserError, match=message):
        Predictor(make_config(), tmp_path / "part.pth")


def test_weights_that_only_training_needs_may_be_missing(folder, tmp_path, predictor):
    weights = torch.load(folder / "sparse.pth", weights_only=True)["model"]
    kept = {k: v for k, v in weights.items() if not k.startswith("encoder_heads.")}
    assert len(kept) < len(weights)
    torch.save({"model": kept}, tmp_path / "kept.pth")
    assert_equal(Predictor(make_config(), tmp_path / "kept.pth")(folder / "rgb.png"), predictor(folder / "rgb.png"))


def test_averaged_weights_are_loaded_on_request(tmp_path, folder, predictor):
    weights = torch.load(folder / "sparse.pth", weights_only=True)["model"]
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": value for name, value in weights.items()}}
    plain = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save({"model": plain, "ema": averaged}, tmp_path / "both.pth")
    averaging = Predictor(make_config(), tmp_path / "both.pth", ema=True)
    assert_equal(averaging(folder / "rgb.png"), predictor(folder / "rgb.png"))
    assert_equal(pickle.loads(pickle.dumps(averaging))(folder / "rgb.png"), predictor(folder / "rgb.png"))


def test_class_names_are_those_of_the_own_data_in_the_config(tmp_path, folder):
    categories = [{"id": 10 * n, "name": f"class {n}"} for n in range(NUM_CLASSES)]
    (tmp_path / "own.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    cfg = make_config()
    cfg.train.own_data = {"train_json": str(tmp_path / "own.json")}
    assert Predictor(cfg, folder / "sparse.pth").class_names == [f"class {n}" for n in range(NUM_CLASSES)]


def test_class_names_of_other_data_are_not_taken(folder):
    cfg = make_config()
    assert Predictor(cfg, folder / "sparse.pth").class_names == []
    cfg.dataloader.test.dataset = {"names": "coco_2017_val"}  # of 80 classes
    assert Predictor(cfg, folder / "sparse.pth").class_names == []


def test_given_class_names_set_the_number_of_classes(folder, predictor):
    cfg = make_config()
    cfg.model.num_classes = 80
    named = Predictor(cfg, folder / "sparse.pth", class_names=list("abcde"))
    assert named.class_names == list("abcde")
    with pytest.raises(UserError, match="class_names is the text 'cat'; give a list of names"):
        Predictor(cfg, folder / "sparse.pth", class_names="cat")
    for wrong in ({0: "cat"}, 5, [1, 2], (name for name in "abcde")):
        with pytest.raises(UserError, match="class_names is .*; give a list of names, one a class in their order"):
            Predictor(cfg, folder / "sparse.pth", class_names=wrong)
    assert_equal(named(folder / "rgb.png"), predictor(folder / "rgb.png"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_config_from_a_gpu_machine_works_on_the_cpu_unless_a_gpu_is_requested(folder, predictor):
    cfg = make_config()
    cfg.train.device = "cuda"
    assert_equal(Predictor(cfg, folder / "sparse.pth")(folder / "rgb.png"), predictor(folder / "rgb.png"))
    no_gpu = "but no GPU can be used here"
    problems = {"cuda": no_gpu, 0: no_gpu, "gpu": "which torch does not know", "meta": "which holds no values"}
    for device, problem in problems.items():
        with pytest.raises(UserError, match=f"device is '(cuda:)?{device}', {problem}; give another one"):
            Predictor(cfg, folder / "sparse.pth", device=device)


def test_a_mapper_that_cannot_be_applied_to_arrays_is_refused(folder):
    cfg = make_config()
    cfg.dataloader.test.mapper = LazyCall(Namespace)(image_format="RGB")
    with pytest.raises(UserError, match="dataloader.test.mapper is a Namespace .* needs one with `augmentations`"):
        Predictor(cfg, folder / "sparse.pth")
    del cfg.dataloader.test.mapper
    with pytest.raises(UserError, match="no dataloader.test.mapper"):
        Predictor(cfg, folder / "sparse.pth")


@pytest.mark.parametrize("optimize", [True, "fp32", "int8"])
def test_the_inference_form_detects_the_same(folder, predictor, optimize):
    form = Predictor(make_config(), folder / "sparse.pth", optimize=optimize)
    found, expected = (each(folder / "rgb.png") for each in (form, predictor))
    assert len(found) == len(expected)
    tolerance = {"atol": 1e-4, "rtol": 0} if optimize != "int8" else {"atol": 0.2, "rtol": 0}
    torch.testing.assert_close(found.scores, expected.scores, **tolerance)
    assert form.outputs(folder / "rgb.png").output.attention_map is not None
    assert_equal(pickle.loads(pickle.dumps(form))(folder / "rgb.png"), found)


def test_a_precision_that_the_model_cannot_have_is_named(folder):
    with pytest.raises(UserError, match="optimize is 'half'; give True, False or one of fp32, bf16, fp16, int8"):
        Predictor(make_config(), folder / "sparse.pth", optimize="half")
    with pytest.raises(UserError, match="optimize is fp16, but float16 is slow on a CPU; give torch.bfloat16, or move"):
        Predictor(make_config(), folder / "sparse.pth", optimize="fp16")
