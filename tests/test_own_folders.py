"""Training on a folder of own data in any form, on synthetic data."""

import json
from pathlib import Path

import pytest
import torch

from sparse_detr.config import load_config
from tests.data import copies
from tests.test_train import _own_loggers, lazy, main, yacs  # noqa: F401 fixtures

TRAIN, VAL = copies.drawings(6), copies.drawings(3, start=20)
ITERATIONS = "train.max_iter=3"


def weights(folder):
    return torch.load(folder / "out" / "model_final.pth", weights_only=True)["model"]


def config_of(folder):
    return load_config(str(folder / "out" / "config.yaml"))


@pytest.fixture(scope="module")
def trained_on_json(tmp_path_factory):
    """Train with the JSON options; return the weights."""
    from tests.test_train import LAZY

    folder = tmp_path_factory.mktemp("json")
    root = copies.write("COCO", folder / "data", {"train": TRAIN, "val": VAL})
    (folder / "tiny.py").write_text(LAZY)
    named = []
    for part in ("train", "val"):
        named += [f"--{part}-json", str(root / "annotations" / f"instances_{part}.json")]
        named += [f"--{part}-images", str(root / "images" / part)]
    config = ["--config-file", str(folder / "tiny.py"), "--output-dir", str(folder / "out")]
    assert main([*config, *named, ITERATIONS, "train.seed=5"]) == 0
    return weights(folder)


@pytest.mark.parametrize("form", list(copies.WRITERS))
def test_copies_in_every_form_give_the_same_training_bit_for_bit(tmp_path, lazy, form, trained_on_json):  # noqa: F811
    root = copies.write(form, tmp_path / "data", {"train": TRAIN, "val": VAL})

    assert main([*lazy, "--train", str(root), ITERATIONS, "train.seed=5"]) == 0

    found = weights(tmp_path)
    assert found.keys() == trained_on_json.keys()
    assert all(torch.equal(found[key], value) for key, value in trained_on_json.items())
    assert "bbox/AP50" in (tmp_path / "out" / "metrics.json").read_text()


def test_the_bits_depend_on_the_boxes(tmp_path, lazy, trained_on_json):  # noqa: F811
    moved = [drawing._replace(shapes=[s._replace(x2=s.x2 + 1) for s in drawing.shapes]) for drawing in TRAIN]
    root = copies.write("CSV", tmp_path / "data", {"train": TRAIN, "val": VAL})
    rows = "".join(",".join(map(str, row)) + "\n" for row in copies.csv_rows(moved))
    (root / "train.csv").write_text("file,x1,y1,x2,y2,class\n" + rows)

    assert main([*lazy, "--train", str(root), ITERATIONS, "train.seed=5"]) == 0
    assert any(not torch.equal(weights(tmp_path)[key], value) for key, value in trained_on_json.items())


def test_a_made_split_is_stated_saved_and_used_by_the_resumed_training(tmp_path, lazy):  # noqa: F811
    root = copies.write("Pascal VOC", tmp_path / "data", {None: copies.drawings(10)})
    before = sorted(root.rglob("*"))
    named = ["--train", str(root), "--val-share", "0.3"]

    assert main([*lazy, *named, "train.max_iter=1"]) == 0

    log = (tmp_path / "out" / "log.txt").read_text()
    assert "no validation data are found: 3 of the 10 images are taken for it" in log
    split = json.loads((tmp_path / "out" / "data" / "split.json").read_text())
    assert len(split["val"]) == 3
    first = dict(config_of(tmp_path).train.own_data)
    val = json.loads(Path(first["val_json"]).read_text())
    assert [image["file_name"] for image in val["images"]] == split["val"]
    assert main([*lazy, *named, "--resume", "train.max_iter=2"]) == 0
    assert dict(config_of(tmp_path).train.own_data) == first
    assert main(["--config-file", str(tmp_path / "out" / "config.yaml"), "--resume", "train.max_iter=3"]) == 0
    assert dict(config_of(tmp_path).train.own_data) == first
    assert sorted(root.rglob("*")) == before
    assert len(list((tmp_path / "out" / "data").iterdir())) == 3


def test_a_yaml_config_takes_a_folder_too_and_other_validation_data_can_be_named_later(tmp_path, yacs, capfd):  # noqa: F811
    train = copies.write("YOLO", tmp_path / "train", {"train": TRAIN})
    val = copies.write("CSV", tmp_path / "val", {"val": VAL})

    assert main([*yacs, "--train", str(train), "--val-share", "0", "SOLVER.MAX_ITER", "1"]) == 0
    saved = ["--config-file", str(tmp_path / "out" / "config.yaml"), "--eval-only"]
    assert main([*saved, "--val", str(val), "MODEL.WEIGHTS", f"{tmp_path}/out/model_final.pth"]) == 0
    assert "bbox/AP50" in capfd.readouterr().out


def test_masks_without_boxes_are_used_and_said_aloud(tmp_path, lazy):  # noqa: F811
    root = copies.write("COCO", tmp_path / "data", {"train": TRAIN, "val": VAL})
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    for item in content["annotations"]:
        x, y, width, height = item.pop("bbox")
        item["segmentation"] = [[x, y, x + width, y, x + width, y + height]]
    path.write_text(json.dumps(content))

    assert main([*lazy, "--train", str(root), "train.max_iter=1"]) == 0
    said = f"{len(content['annotations'])} annotations have no 'bbox' and were given the box around their mask"
    assert said in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "{root}", "--train-json", "a.json"], "--train and --val name the same data as --train-json"),
        (["--val", "{root}"], "needs the training data, which give the classes; add --train"),
        (["--train", "nowhere"], "there is no folder or file nowhere"),
        (["--train", "{root}", "--val-share", "2"], "the share for validation is 2.0; give a number between 0 and 1"),
    ],
)
def test_wrong_options_of_folders_are_one_line(tmp_path, lazy, capsys, arguments, message):  # noqa: F811
    root = copies.write("CSV", tmp_path / "data", {None: TRAIN})
    assert main([*lazy, *(argument.format(root=root) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


def test_all_entries_that_cannot_be_read_are_one_error(tmp_path, lazy, capsys):  # noqa: F811
    root = copies.write("YOLO", tmp_path / "data", {"train": TRAIN})
    (root / "labels" / "train" / "image_00.txt").write_text("0 1 2\n7 0.5 0.5 0.1 0.1\n")
    assert main([*lazy, "--train", str(root)]) == 2
    error = capsys.readouterr().err
    assert "data.yaml cannot be used:" in error
    assert "1 lines of labels cannot be read" in error
    assert "1 labels name a class beyond" in error
