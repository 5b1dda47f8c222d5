"""The demo draws every image that it can read, for configs of every kind, and refuses wrong options."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image

from sparse_detr.cli import _optimize
from sparse_detr.cli.demo import find_images, unique_stems
from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.config.own_data import use_own_data
from sparse_detr.config.run import make_run
from sparse_detr.inference import PRECISIONS

COMMON = Path(__file__).parents[2] / "configs" / "common"
KINDS = {"detections", "tokens", "scores", "attention", "overview"}

CONFIG = """
from detectron2.config import LazyConfig
from sparse_detr import recipes

dataloader, optimizer, train = LazyConfig.load({coco!r}, ("dataloader", "optimizer", "train"))
lr_multiplier = LazyConfig.load({schedule!r}, "step")
dataloader.test.mapper.augmentations.short_size = 64
train.device = "cpu"
model = recipes.{recipe}(
    backbone=recipes.mobilenet_v2(), num_classes=2, embed_dim=64, encoder_layers=1, decoder_layers=1, num_levels=3,
    num_queries=10, feedforward_dim=32,
)
"""

YAML = f"""
_BASE_: {COMMON.parent / "Base-DETR.yaml"}
MODEL:
  META_ARCHITECTURE: SparseDETR
  BACKBONE: {{NAME: build_mobilenet_v2_backbone}}
  DETR: {{EMBED_DIM: 64, ENCODER_LAYERS: 1, DECODER_LAYERS: 1, NUM_LEVELS: 3, NUM_QUERIES: 10, FEEDFORWARD_DIM: 32}}
INPUT: {{MIN_SIZE_TEST: 64}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Return the working directory, with configs and weights of a sparse and a dense detector, images and classes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name, size in {"wide.png": (96, 64), "tall.jpg": (64, 90)}.items():
        pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
    for kind, recipe in {"sparse": "sparse_detr", "dense": "deformable_detr"}.items():
        text = CONFIG.format(coco=str(COMMON / "coco.py"), schedule=str(COMMON / "schedule.py"), recipe=recipe)
        (tmp_path / f"{kind}.py").write_text(text)
        torch.manual_seed(0)
        model = instantiate(load_config(f"{kind}.py").model)
        torch.save({"model": model.state_dict()}, tmp_path / f"{kind}.pth")
    categories = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    (tmp_path / "classes.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return tmp_path


def demo(kind: str, *options: str, images: str = "images") -> int:
    return main(
        ["demo", "--config-file", f"{kind}.py", "--weights", f"{kind}.pth", "--input", images, "--output", "out"]
        + ["--score-threshold", "0", *options]
    )


def written(folder: Path, stem: str) -> set[str]:
    return {path.stem.removeprefix(f"{stem}_") for path in (folder / "out").glob(f"{stem}_*.png")}


def test_an_image_gets_all_pictures_and_its_detections(folder, capsys):
    assert demo("sparse", "--train-json", "classes.json", "--budget", "0.5", images="images/tall.jpg") == 0
    assert written(folder, "tall") == KINDS
    result = json.loads((folder / "out" / "tall.json").read_text())
    assert (result["width"], result["height"]) == (64, 90)
    assert result["kept_share"] == pytest.approx(0.5, abs=0.02)
    assert {detection["name"] for detection in result["detections"]} <= {"cat", "dog"}
    assert (result["file_name"], result["weights"]) == ("images/tall.jpg", "sparse.pth")
    assert (result["class_names"], result["score_threshold"]) == (["cat", "dog"], 0)
    assert result["detections"][0]["score"] >= result["detections"][-1]["score"]
    assert "1 of 1 images drawn" in capsys.readouterr().out


def test_a_dense_detector_has_no_token_pictures_and_the_demo_says_so_once(folder, capsys):
    assert demo("dense", images="images/wide.png") == 0
    assert written(folder, "wide") == KINDS - {"tokens", "scores"}
    assert capsys.readouterr().out.count("dense encoder") == 1


def test_pooled_tokens_get_a_page_of_their_own(folder):
    text = (folder / "sparse.py").read_text().replace("sparse_detr(", "pnp_detr(").replace("num_levels=3,", "")
    (folder / "pnp.py").write_text(text.replace("mobilenet_v2()", "mobilenet_v2(strides=(16,))"))
    torch.save({"model": instantiate(load_config("pnp.py").model).state_dict()}, folder / "pnp.pth")
    assert demo("pnp", "--budget", "0.5", images="images/wide.png") == 0
    assert written(folder, "wide") == KINDS - {"attention"} | {"pooling"}
    assert json.loads((folder / "out" / "wide.json").read_text())["kept_share"] == pytest.approx(0.5, abs=0.05)


def test_an_unreadable_image_is_named_skipped_and_counted(folder, capsys):
    (folder / "images" / "broken.png").write_bytes(b"no image")
    assert demo("sparse") == 0
    output = capsys.readouterr()
    assert "broken.png" in output.out
    assert "2 of 3 images drawn, 1 skipped" in output.out


def test_the_demo_fails_if_no_image_can_be_read(folder):
    (folder / "broken.png").write_bytes(b"no image")
    assert demo("sparse", images="broken.png") == 1


def test_the_saved_config_of_a_run_is_accepted(folder):
    from detectron2.config import LazyConfig

    LazyConfig.save(load_config("sparse.py"), "config.yaml")
    arguments = ["--weights", "sparse.pth", "--input", "images/wide.png", "--output", "out"]
    assert main(["demo", "--config-file", "config.yaml", *arguments]) == 0
    assert written(folder, "wide") == KINDS


def test_the_saved_config_of_a_training_without_validation_is_accepted(folder):
    from detectron2.config import LazyConfig

    image = {"id": 1, "file_name": "wide.png", "width": 96, "height": 64}
    box = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [5, 5, 30, 30], "area": 900, "iscrowd": 0}
    categories = [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    Path("own.json").write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    cfg = load_config("sparse.py")
    own = {"train_json": "own.json", "train_images": "images", "val_json": None, "val_images": None}
    use_own_data(cfg, own, [])
    assert make_run(cfg).evaluation_sets == []
    LazyConfig.save(cfg, "config.yaml")
    arguments = ["--weights", "sparse.pth", "--input", "images/wide.png", "--output", "out"]
    assert main(["demo", "--config-file", "config.yaml", *arguments]) == 0
    assert json.loads((folder / "out" / "wide.json").read_text())["class_names"] == ["cat", "dog"]


def test_a_yaml_config_of_the_same_model_takes_the_same_weights(folder):
    (folder / "sparse.yaml").write_text(YAML)
    arguments = ["--weights", "sparse.pth", "--input", "images/wide.png", "--output", "out"]
    assert main(["demo", "--config-file", "sparse.yaml", *arguments, "--train-json", "classes.json"]) == 0
    assert written(folder, "wide") == KINDS


def test_overrides_apply_in_the_configs_own_style(folder, capsys):
    assert demo("sparse", "--max-images", "1", "--opts", "model.selector.budget.keep_ratio=1.0") == 0
    assert json.loads((folder / "out" / "tall.json").read_text())["kept_share"] == 1
    assert "1 of 1 images drawn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("dense", ["--budget", "0.5"], "dense encoder"),
        ("sparse", ["--budget", "0"], "--budget: keep_ratio must be above 0 and at most 1, got 0"),
        ("sparse", ["--budget", "nan"], "--budget: keep_ratio must be above 0"),
        ("sparse", ["--score-threshold", "50"], "--score-threshold 50 is no score; give a number from 0 to 1"),
        ("sparse", ["--score-threshold", "nan"], "--score-threshold nan"),
        ("sparse", ["--max-images", "0"], "--max-images 0 leaves nothing to draw"),
        ("sparse", ["--max-images", "-3"], "--max-images -3"),
        ("sparse", ["--weights", ""], "--weights is empty"),
        ("sparse", ["--weights", "absent.pth"], "there is no checkpoint 'absent.pth'"),
        ("sparse", ["--ema"], "sparse.pth: no averaged weights found: it holds model (OrderedDict)"),
        ("sparse", ["--output", "sparse.py"], "sparse.py is a file, but a folder is needed"),
        ("sparse", ["--opts", "model.num_classes=7"], "the checkpoint has 2 classes and the model 7"),
    ],
)
def test_a_wrong_option_is_one_error_without_a_traceback(folder, capsys, kind, options, message):
    assert demo(kind, *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_requested_device_that_is_missing_is_refused(folder, capsys):
    assert demo("sparse", "--opts", "train.device=cuda") == 2
    assert "'cuda'" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_named(folder, capsys):
    weights = torch.load("sparse.pth", weights_only=True)["model"]
    weights["tokenizer.level_embed"][0, 0] = float("nan")
    torch.save({"model": weights}, "sparse.pth")
    assert demo("sparse") == 2
    assert "sparse.pth holds NaN or infinite values in 1 of" in (error := capsys.readouterr().err)
    assert "tokenizer.level_embed" in error


def test_averaged_weights_alone_are_used_on_request(folder, capsys):
    weights = torch.load("sparse.pth", weights_only=True)["model"]
    torch.save({"ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in weights.items()}}}, "sparse.pth")
    assert demo("sparse", images="images/wide.png") == 2
    assert "use --ema" in capsys.readouterr().err
    assert demo("sparse", "--ema", images="images/wide.png") == 0


def test_a_picture_that_cannot_be_written_ends_the_demo_with_its_name(folder, capsys):
    (folder / "out" / "wide_detections.png").mkdir(parents=True)
    assert demo("sparse", images="images/wide.png") == 2
    assert "wide_detections.png: a folder has this name" in capsys.readouterr().err


def test_an_input_without_images_is_an_error_that_names_it(folder, capsys):
    assert demo("sparse", images="nowhere/*.png") == 2
    assert "nowhere/*.png" in capsys.readouterr().err


def test_images_are_found_in_folders_by_pattern_and_by_name_once_each(folder):
    found = find_images(["images", "images/*.jpg", "images/wide.png"])
    assert [Path(path).name for path in found] == ["tall.jpg", "wide.png"]


def test_files_of_the_same_name_do_not_overwrite_each_other():
    assert unique_stems(["a/x.png", "b/x.png", "b/x-2.png", "c/x.jpg"]) == ["x", "x-2", "x-2-2", "x-3"]


def test_the_inference_form_draws_the_same_pictures(folder, capsys):
    assert demo("sparse", "--optimize", images="images/tall.jpg") == 0
    assert written(folder, "tall") == KINDS
    found = json.loads((folder / "out" / "tall.json").read_text())
    assert demo("sparse", images="images/tall.jpg") == 0
    expected = json.loads((folder / "out" / "tall.json").read_text())
    assert found["kept_share"] == expected["kept_share"]
    assert len(found["detections"]) == len(expected["detections"])


def test_the_precisions_of_the_command_line_are_those_of_the_inference_form():
    assert tuple(PRECISIONS) == _optimize.PRECISIONS
