"""The command explains every image that it can read, writes all of it, and refuses what it cannot use."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import instantiate

import sparse_detr.explain as explanations
from sparse_detr.cli.explain import Truth
from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.errors import UserError
from sparse_detr.explain.minimal_budget import size_of
from tests.cli.test_demo import folder  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore")


def explain(*words: str, kind: str = "sparse", images: str = "images/tall.jpg") -> int:
    return main(
        ["explain", images, "--config-file", f"{kind}.py", "--weights", f"{kind}.pth", "--output", "out"]
        + ["--score-threshold", "0", "--count", "1", "--draws", "1", "--train-json", "classes.json", *words]
    )


def write_truth(folder, name="tall.jpg"):  # noqa: F811
    content = json.loads((folder / "classes.json").read_text())
    content["images"] = [{"id": 7, "file_name": name, "height": 90, "width": 64}]
    box = {"id": 1, "image_id": 7, "category_id": 5, "bbox": [10, 20, 30, 40], "area": 1200, "iscrowd": 0}
    content["annotations"] = [box]
    (folder / "truth.json").write_text(json.dumps(content))


def test_an_image_gets_a_page_pictures_arrays_numbers_and_text(folder, capsys):  # noqa: F811
    write_truth(folder)
    assert explain("--truth", "truth.json", "--compare", "sparse.py", "sparse.pth") == 0
    said = capsys.readouterr().out
    assert "detection 1: This detection is of class" in said
    assert "Sanity check against random weights: rank correlation of the token scores" in said
    assert "gains 0 and loses 0" in said
    names = {path.name for path in (folder / "out").iterdir()}
    assert {
        "explain.html",
        "explain.json",
        "tall.npz",
        "tall_found.png",
        "tall_compare.png",
        "tall_tokens.png",
    } <= names
    numbers = json.loads((folder / "out" / "explain.json").read_text())
    assert [row["class"] for row in numbers["images"][0]["found_from"]] == ["dog"]
    assert numbers["images"][0]["found_from"][0]["box"] == [10, 20, 40, 60]
    assert np.load(folder / "out" / "tall.npz")["kept"].ndim == 3


def test_numbers_alone_are_printed_on_demand(folder, capsys):  # noqa: F811
    assert explain("--json", "--no-sanity", "--budget", "levels:0.2,0.5,1") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["images"][0]["sanity"] is None
    rows = numbers["images"][0]["ledger"]["rows"]
    assert rows[2]["kept"] == rows[2]["tokens"]


def test_a_dense_model_is_explained_without_budgets(folder, capsys):  # noqa: F811
    assert explain("--no-sanity", kind="dense") == 0
    assert "under its box" in capsys.readouterr().out
    assert not (folder / "out" / "tall_found.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "--count is 0; give 1 or more"),
        (["--detection", "0"], "detections are counted from 1"),
        (["--detection", "500"], "there is no detection 500"),
        (["--budget", "0.3+decoder:1"], "--budget 0.3+decoder:1 sets more than the tokens"),
        (["--budget", "half"], "'half' is no budget"),
        (["--truth", "missing.json"], "missing.json"),
        (["--truth", "other.json"], "has no image tall.jpg"),
        (["--weights", "dense.pth"], "give the config it was trained with"),
        (["--compare", "missing.py", "dense.pth"], "missing.py"),
    ],
)
def test_what_cannot_be_used_is_named(folder, capsys, words, message):  # noqa: F811
    write_truth(folder, "wide.png")
    (folder / "truth.json").rename(folder / "other.json")
    assert explain("--no-sanity", *words) == 2
    assert message in capsys.readouterr().err


def test_a_path_without_an_image_is_refused(folder, capsys):  # noqa: F811
    assert explain(images="nothing.jpg") == 2
    assert "IMAGE nothing.jpg: no image found" in capsys.readouterr().err


def test_an_unreadable_image_is_skipped_with_its_reason(folder, capsys):  # noqa: F811
    (folder / "broken.png").write_bytes(b"no image")
    assert explain("--no-sanity", images="broken.png") == 1
    assert "skipped broken.png" in capsys.readouterr().out


def test_an_image_without_the_chosen_detection_does_not_stop_the_others(folder, capsys):  # noqa: F811
    assert explain("--no-sanity", "--detection", "500", images="images") == 1
    said = capsys.readouterr().out
    assert said.count("there is no detection 500") == 2


def test_an_error_in_the_last_image_leaves_the_files_of_those_before(folder, monkeypatch):  # noqa: F811
    explain_image, names = explanations.explain_image, []

    def fail_at_the_second(*args, name, **options):
        names.append(name)
        if len(names) == 2:
            raise RuntimeError("out of memory")
        return explain_image(*args, name=name, **options)

    monkeypatch.setattr(explanations, "explain_image", fail_at_the_second)
    with pytest.raises(RuntimeError, match="out of memory"):
        explain("--no-sanity", images="images")
    assert names == ["tall.jpg", "wide.png"]
    written = {path.name for path in (folder / "out").iterdir()}
    assert {"tall.npz", "tall.json", "tall_causes.png", "tall_found.png", "tall_tokens.png"} <= written
    assert not any(name.startswith("wide") for name in written)


def test_of_images_with_one_name_the_true_boxes_of_the_own_folder_are_taken(folder):  # noqa: F811
    write_truth(folder)
    content = json.loads((folder / "truth.json").read_text())
    other = {"id": 8, "file_name": "other/tall.jpg", "height": 90, "width": 64}
    content["images"] = [{**content["images"][0], "file_name": "images/tall.jpg"}, other]
    content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 8, "bbox": [0, 0, 5, 5]})
    (folder / "truth.json").write_text(json.dumps(content))
    truth = Truth("truth.json", ["cat", "dog"], 2)
    [found] = truth.of("images/tall.jpg")
    assert (found.box.tolist(), found.area) == ([10, 20, 40, 60], 1200)
    with pytest.raises(UserError, match=r"has several images tall\.jpg"):
        truth.of("tall.jpg")


def test_the_size_of_a_true_object_is_that_of_its_area_as_in_coco(folder):  # noqa: F811
    """By hand: the box has 40 x 30 = 1200 pixels, above 32², its mask 1000, below it; a crowd is no object."""
    write_truth(folder)
    content = json.loads((folder / "truth.json").read_text())
    box = content["annotations"][0]
    content["annotations"] = [{**box, "area": 1000}, {**box, "id": 2, "area": None}, {**box, "id": 3, "iscrowd": 1}]
    (folder / "truth.json").write_text(json.dumps(content))
    assert [size_of(target) for target in Truth("truth.json", ["cat", "dog"], 2).of("tall.jpg")] == ["small", "medium"]
    assert explain("--no-sanity", "--truth", "truth.json") == 0
    rows = json.loads((folder / "out" / "explain.json").read_text())["images"][0]["found_from"]
    assert [row["size"] for row in rows] == ["small", "medium"]


def test_true_boxes_of_another_number_of_classes_are_refused_where_names_are_unknown(folder):  # noqa: F811
    write_truth(folder)
    with pytest.raises(UserError, match="has 2 classes, but the model 3"):
        Truth("truth.json", [], 3)
    assert Truth("truth.json", [], 2).of("tall.jpg")[0].label == 1


def test_a_second_model_with_another_number_of_classes_is_refused(folder, capsys):  # noqa: F811
    text = (folder / "sparse.py").read_text().replace("num_classes=2", "num_classes=3")
    (folder / "three.py").write_text(text)
    torch.save({"model": instantiate(load_config("three.py").model).state_dict()}, "three.pth")
    assert explain("--no-sanity", "--compare", "three.py", "three.pth") == 2
    assert "three.pth has 3 classes, but --weights 2" in capsys.readouterr().err


def test_an_image_with_the_name_of_the_numbers_keeps_its_detections(folder):  # noqa: F811
    (folder / "images" / "tall.jpg").rename("explain.jpg")
    assert explain("--no-sanity", images="explain.jpg") == 0
    assert "proposal" in json.loads((folder / "out" / "explain.json").read_text())
    assert "detections" in json.loads((folder / "out" / "explain-2.json").read_text())
