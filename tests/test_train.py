"""The training command, on synthetic data."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from sparse_detr import train
from sparse_detr.config import load_config
from sparse_detr.config.model import build_test_mapper
from sparse_detr.config.run import make_run
from sparse_detr.engine import replay
from sparse_detr.errors import UserError
from sparse_detr.modeling.detector import GeneralizedDETR

LAZY = """
from detectron2.config import LazyConfig
from sparse_detr.recipes import mobilenet_v2, sparse_detr

dataloader, optimizer, lr_multiplier, train = LazyConfig.load(
    "configs/common/coco.py", ("dataloader", "optimizer", "lr_multiplier", "train"))
model = sparse_detr(backbone=mobilenet_v2(), embed_dim=64, num_heads=2, encoder_layers=1, decoder_layers=1,
                    feedforward_dim=16, num_queries=5)
dataloader.train.mapper.augmentations.update(short_sizes=[64], crop_range=None)
dataloader.test.mapper.augmentations.short_size = 64
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
train.update(max_iter=2, device="cpu")
train.checkpointer.period = 1
"""
YACS = """
_BASE_: {base}
MODEL:
  META_ARCHITECTURE: SparseDETR
  WEIGHTS: ""
  DEVICE: cpu
  BACKBONE:
    NAME: build_mobilenet_v2_backbone
  DETR:
    EMBED_DIM: 64
    NUM_HEADS: 2
    ENCODER_LAYERS: 1
    DECODER_LAYERS: 1
    FEEDFORWARD_DIM: 16
    NUM_QUERIES: 5
INPUT:
  MIN_SIZE_TRAIN: (64,)
  MIN_SIZE_TEST: 64
  CROP:
    ENABLED: False
DATALOADER:
  NUM_WORKERS: 0
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 2
  STEPS: ()
  CHECKPOINT_PERIOD: 1
"""


def main(arguments):
    """Run the command and return its exit code."""
    try:
        return train.main(arguments)
    except SystemExit as stopped:
        return stopped.code


@pytest.fixture
def data(tmp_path):
    """Write three images with a box each, in two categories; return the arguments that name them."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(1, 4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        box = {"bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 3 + 4 * (number % 2), **box})
    categories = [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    file, folder = tmp_path / "own.json", str(tmp_path / "images")
    file.write_text(json.dumps(coco))
    return ["--train-json", str(file), "--train-images", folder, "--val-json", str(file), "--val-images", folder]


@pytest.fixture
def lazy(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(LAZY)
    return ["--config-file", str(path), "--output-dir", str(tmp_path / "out")]


@pytest.fixture
def yacs(tmp_path, request):
    path = tmp_path / "tiny.yaml"
    path.write_text(YACS.format(base=request.config.rootpath / "configs" / "Base-DETR.yaml"))
    return ["--config-file", str(path), "--output-dir", str(tmp_path / "out")]


@pytest.fixture(autouse=True)
def _own_loggers():
    """Restore the loggers after a run, so that other tests can read the log."""
    names = ("detectron2", "fvcore", "sparse_detr")
    before = {name: (logging.getLogger(name).propagate, list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name, (propagate, handlers) in before.items():
        logging.getLogger(name).propagate = propagate
        logging.getLogger(name).handlers = handlers


@pytest.mark.parametrize("kind", ["lazy", "yacs"])
def test_own_data_are_trained_on_and_evaluated_in_one_command(tmp_path, data, kind, request):
    assert main([*request.getfixturevalue(kind), *data]) == 0
    weights = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    assert weights["decoder_heads.0.class_embed.weight"].shape == (2, 64)  # the number of categories
    assert json.loads((tmp_path / "out" / "metrics.json").read_text().splitlines()[-1])["iteration"] == 2


def test_saved_config_resumes_and_evaluates_without_naming_the_data_again(tmp_path, data, lazy, capfd):
    assert main([*lazy, *data, "train.seed=-1"]) == 0
    saved = ["--config-file", str(tmp_path / "out" / "config.yaml")]
    assert main([*saved, "--resume", "train.max_iter=3"]) == 0
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["iteration"] == 2
    assert main([*saved, "--eval-only", f"train.init_checkpoint={tmp_path}/out/model_final.pth"]) == 0
    assert "bbox/AP50" in capfd.readouterr().out


def test_a_yaml_run_writes_into_the_folder_of_its_name_and_its_saved_config_resumes_there(
    tmp_path, data, yacs, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([*yacs[:2], *data[:4], "SOLVER.MAX_ITER", "1"]) == 0
    assert main(["--config-file", "output/tiny/config.yaml", "--resume", "SOLVER.MAX_ITER", "2"]) == 0
    assert torch.load(tmp_path / "output" / "tiny" / "model_final.pth", weights_only=True)["iteration"] == 1
    assert not (tmp_path / "output" / "config").exists()


@pytest.mark.parametrize("named", ["validation", "both"])
def test_the_config_of_a_training_without_validation_evaluates_given_validation_data(
    tmp_path, data, lazy, capfd, named
):
    training, validation = data[:4], data[4:]
    assert main([*lazy, *training, "train.max_iter=1"]) == 0
    given = validation if named == "validation" else data
    saved = ["--config-file", str(tmp_path / "out" / "config.yaml")]
    assert main([*saved, "--eval-only"]) == 2
    assert main([*saved, "--eval-only", *given, f"train.init_checkpoint={tmp_path}/out/model_final.pth"]) == 0
    assert "bbox/AP50" in capfd.readouterr().out


def test_validation_data_alone_need_stored_training_data(data, lazy, capsys):
    assert main([*lazy, *data[4:]]) == 2
    assert "own data need --train-json and --train-images" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_an_unregistered_data_set_is_named_before_the_training(yacs, key):
    cfg = load_config(yacs[1], [f"DATASETS.{key}", "('nope',)"])
    with pytest.raises(UserError, match=f"DATASETS.{key} names nope, which is not registered"):
        make_run(cfg).build_train_loader()


@pytest.mark.parametrize("kind", ["lazy", "yacs"])
def test_a_data_set_that_is_not_on_the_machine_is_named_with_the_remedy(request, kind, monkeypatch, capsys):
    """COCO, which the configs of the papers name, on a new machine."""
    for name in ("coco_2017_train", "coco_2017_val"):
        monkeypatch.setitem(vars(MetadataCatalog.get(name)), "json_file", f"nowhere/{name}.json")
    arguments = request.getfixturevalue(kind)
    message = "the data set {0} needs nowhere/{0}.json, which does not exist; set DETECTRON2_DATASETS"
    assert main(arguments) == 2
    assert message.format("coco_2017_train") in capsys.readouterr().err
    run = make_run(load_config(arguments[1]))
    with pytest.raises(UserError, match=message.format("coco_2017_val")):
        run.evaluation_sets[0].build_loader()


@pytest.mark.parametrize("setting", ["lr_multiplier=null", "train.device=mps"])
def test_an_unknown_schedule_and_a_missing_device_are_refused(lazy, data, capsys, monkeypatch, setting):
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert main([*lazy, *data, setting]) == 2
    assert setting.split("=")[0] in capsys.readouterr().err


def test_training_that_diverges_exits_with_its_own_code_and_can_be_replayed(tmp_path, data, lazy, capsys):
    diverge = ["optimizer.lr=1e12", "train.clip_grad_norm=null", "train.max_iter=5"]
    assert main([*lazy, *data, *diverge]) == 3
    assert "before the optimiser step" in capsys.readouterr().err
    (bundle,) = (tmp_path / "out").glob("nonfinite_iter_*.pth")
    assert replay.main([str(bundle)]) == 2  # the config beside it is code
    config = str(tmp_path / "out" / "config.yaml")
    assert f"--config-file {config}" in capsys.readouterr().err
    assert replay.main([str(bundle), "--config-file", config]) == 1
    assert "again: " in capsys.readouterr().out


def test_number_of_classes_that_contradicts_the_data_names_both(lazy, data, capsys):
    assert main([*lazy, *data, "model.num_classes=5"]) == 2
    assert "num_classes is set to 5, but" in (error := capsys.readouterr().err)
    assert "has 2 categories" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train-json", "a.json"], "--train-json and --train-images"),
        (["--train-json", "a.json", "--train-images", "d", "--val-json", "b.json"], "--val-json and --val-images"),
        (["train.max_iter", "7"], "write train.max_iter=7"),
        (["--train-json", "nowhere.json", "--train-images", "d"], "nowhere.json"),
    ],
)
def test_wrong_arguments_are_one_line_without_a_traceback(lazy, arguments, message, capsys):
    assert main([*lazy, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_missing_config_is_one_line(capsys):
    assert main(["--config-file", "nowhere.yaml"]) == 2
    assert "error: config file 'nowhere.yaml' does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["train.init_checkpoint="], True),
        (["train.init_checkpoint=''"], False),
        (["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""], True),
        (["train.init_checkpoint=a.pth"], False),
        (["MODEL.WEIGHTS", "a.pth"], False),
        ([], False),
    ],
)
def test_only_the_command_line_itself_asks_for_random_weights(overrides, asked):
    assert train._asks_for_random_weights(overrides) is asked


def test_evaluating_without_weights_is_one_line_and_leaves_the_config_of_the_training(tmp_path, data, lazy, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("of a training")
    assert main([*lazy, *data, "--eval-only"]) == 2
    assert "no weights to evaluate are named" in capsys.readouterr().err
    assert (tmp_path / "out" / "config.yaml").read_text() == "of a training"


def test_the_inference_form_is_evaluated_but_not_trained(data, lazy, capsys):
    assert main([*lazy, *data, "--optimize"]) == 2
    assert "--optimize is for a finished model, which does not learn; add --eval-only" in capsys.readouterr().err
    assert main([*lazy, *data, "--optimize", "--eval-only", "train.init_checkpoint="]) == 0


def test_an_evaluation_takes_a_budget_and_a_training_does_not(data, lazy, capsys, monkeypatch):
    assert main([*lazy, *data, "--budget", "0.5"]) == 2
    assert "--budget 0.5 is for a finished model; add --eval-only, or train with another" in capsys.readouterr().err
    budgets = []
    forward = GeneralizedDETR.forward
    monkeypatch.setattr(
        GeneralizedDETR, "forward", lambda self, images, budget=None: budgets.append(budget) or forward(self, images)
    )
    evaluate = [*lazy, *data, "--eval-only", "train.init_checkpoint="]
    assert main([*evaluate, "--budget", "levels:1"]) == 2
    assert "--budget levels:1 has 1 shares, but this model" in capsys.readouterr().err
    assert not budgets
    assert main([*evaluate, "--budget", "0.5"]) == 0
    assert set(budgets) == {0.5}


def test_warnings_about_own_data_are_in_the_log_file_and_masks_and_preprocessing_in_the_config(tmp_path, data, lazy):
    file = tmp_path / "own.json"
    coco = json.loads(file.read_text())
    coco["annotations"] += [coco["annotations"][0] | {"id": 10 + n, "bbox": [n, n, 9, 9]} for n in range(6)]
    box = coco["annotations"][1].pop("bbox")
    coco["annotations"][1]["segmentation"] = [[box[0], box[1], box[0] + box[2], box[1] + box[3]]]
    file.write_text(json.dumps(coco))

    assert main([*lazy, *data[:4], "--boxes-from-masks"]) == 0

    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.count("were given the box around their mask") == 1
    assert log.count("more boxes than the model's 5 queries") == 1
    saved = str(tmp_path / "out" / "config.yaml")
    assert (
        build_test_mapper(load_config(saved))({"file_name": str(tmp_path / "images" / "1.png")})["image"].shape[0] == 3
    )
    assert main(["--config-file", saved, "--resume", "train.max_iter=3"]) == 0
