"""The command reports on files and on a run, and names what is wrong with either."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparse_detr.cli.main import main
from sparse_detr.config import load_config
from sparse_detr.config.own_data import use_own_data
from sparse_detr.config.run import make_run
from sparse_detr.data.register import register_coco_files
from sparse_detr.engine.config_changes import write_config
from sparse_detr.evaluation.truth import note_truth
from tests.cli.test_demo import COMMON, CONFIG, YAML
from tests.report.made_up import make_results, make_truth

FILES = ["--truth", "truth.json", "--results", "results.json"]
NAMES = {"report.json", "report.html", "curves.png", "confusion.png", "calibration.png"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return the working directory, with true boxes, images and detections."""
    monkeypatch.chdir(tmp_path)
    Path("truth.json").write_text(json.dumps(make_truth()))
    Path("results.json").write_text(json.dumps(make_results()))
    Path("images").mkdir()
    for number in (1, 2, 3):
        Image.fromarray(np.full((64, 64, 3), 60 * number, np.uint8)).save(f"images/{number}.png")
    return tmp_path


@pytest.fixture(params=["lazy", "yaml"])
def run_folder(folder, request):
    """Return the folder that an evaluated training leaves behind."""
    config = Path("tiny.py" if request.param == "lazy" else "tiny.yaml")
    text = CONFIG.format(coco=str(COMMON / "coco.py"), schedule=str(COMMON / "schedule.py"), recipe="sparse_detr")
    config.write_text(text if request.param == "lazy" else YAML)
    run = folder / "run"
    (run / "inference").mkdir(parents=True)
    overrides = {"lazy": [f"train.output_dir={run}"], "yaml": ["OUTPUT_DIR", str(run)]}[request.param]
    cfg = load_config(str(config), overrides)
    paths = {f"{split}_{what}": str(folder / name) for split in ("train", "val") for what, name in
             (("json", "truth.json"), ("images", "images"))}  # fmt: skip
    use_own_data(cfg, paths)
    write_config(make_run(cfg))
    (run / "inference" / "coco_instances_results.json").write_text(json.dumps(make_results()))
    return run


def names_in(folder):
    return {path.name for path in Path(folder).iterdir()}


def test_files_give_a_report(folder, capsys):
    assert main(["report", *FILES, "--output", "out"]) == 0
    assert names_in("out") == NAMES
    printed = capsys.readouterr().out
    assert "| cat | 3 | 6 | 73.5 |" in printed
    assert "duplicates cost 5.0 AP50" in printed
    assert "are in out: report.json, report.html" in printed


def test_with_images_the_worst_are_shown(folder, capsys):
    assert main(["report", *FILES, "--images", "images", "--output", "out", "--json"]) == 0
    assert names_in("out") == NAMES | {"worst.png"}
    assert json.loads(capsys.readouterr().out) == json.loads(Path("out/report.json").read_text())


def test_an_image_that_cannot_be_read_is_named_and_left_out(folder, capsys):
    Path("images/1.png").write_bytes(b"no image")
    assert main(["report", *FILES, "--images", "images", "--output", "out"]) == 0
    assert names_in("out") == NAMES
    assert "not shown: " in capsys.readouterr().err


def test_a_run_gives_the_report_of_its_last_evaluation(run_folder, capsys):
    assert main(["report", "--run", str(run_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert names_in(run_folder / "report") == NAMES | {"worst.png"}
    assert found["scores"]["AP"] == pytest.approx(100 * (34 + 67 * 3 / 5) / 101 / 2)
    assert found["max_detections"] == 100


def test_detections_of_other_data_than_the_config_names_are_refused(run_folder, capsys):
    """As after `--eval-only --val other`: the ids fit, but the true boxes are others."""
    other = make_truth()
    other["annotations"][0]["bbox"] = [30, 0, 10, 10]
    Path("other.json").write_text(json.dumps(other))
    note_truth(run_folder / "inference", "own_val_other", "other.json")
    assert main(["report", "--run", str(run_folder)]) == 2
    message = capsys.readouterr().err
    assert (
        "belong to the data own_val_other with the true boxes other.json, but the config names own_val_truth" in message
    )
    assert "evaluate on these, or give --truth and --results" in message
    assert not (run_folder / "report").exists()
    note_truth(run_folder / "inference", "own_val_other", "truth.json")
    assert main(["report", "--run", str(run_folder)]) == 0


def test_a_report_on_other_data_says_what_it_replaces(run_folder, capsys):
    assert main(["report", "--run", str(run_folder)]) == 0
    assert "replaces" not in capsys.readouterr().out
    Path("other.json").write_text(json.dumps(make_truth()) + " ")
    overrides = {".py": "train.own_data.{}={}", ".yaml": "DATASETS.OWN.{} {}"}
    [config] = Path().glob("tiny.*")
    key, keys = overrides[config.suffix], {".py": "val_json", ".yaml": "VAL_JSON"}
    words = key.format(keys[config.suffix], Path("other.json").resolve()).split()
    assert main(["report", "--run", str(run_folder), *words]) == 0
    assert "this report is on own_val_other_" in (said := capsys.readouterr().out)
    assert "; it replaces a report on own_val_truth_" in said
    page = (run_folder / "report" / "report.html").read_text(encoding="utf-8")
    assert "it replaces a report on own_val_truth_" in page
    assert "data: own_val_other_" in page


@pytest.mark.parametrize("run_folder", ["yaml"], indirect=True)  # a lazy config has one evaluation set
def test_of_several_evaluation_sets_the_report_names_the_last(run_folder, capsys):
    config, names = run_folder / "config.yaml", [item["name"] for item in make_truth()["categories"]]
    for name in ("one", "two"):
        register_coco_files(name=name, annotations="truth.json", images="images", class_names=names)
    cfg = load_config(str(config))
    cfg.DATASETS.TEST = ("one", "two")
    for key in cfg.DATASETS.OWN:
        cfg.DATASETS.OWN[key] = type(cfg.DATASETS.OWN[key])()
    config.write_text(cfg.dump())
    assert main(["report", "--run", str(run_folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["data"], found["other_data"]) == ("two", ["one"])
    assert found["sentences"][0] == "this report is on two; the config's other evaluation data are not in it: one"


def test_the_number_of_detections_that_count_can_be_chosen(folder, capsys):
    assert main(["report", *FILES, "--output", "out", "--max-detections", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["max_detections"] == 1
    # The best cat of either image is right; the third cat can no longer be found.
    assert found["classes"][0]["recall"] == pytest.approx(2 / 3)


def test_an_image_of_another_size_than_recorded_is_named_and_left_out(folder, capsys):
    Image.fromarray(np.full((30, 40, 3), 60, np.uint8)).save("images/1.png")
    assert main(["report", *FILES, "--images", "images", "--output", "out"]) == 0
    assert names_in("out") == NAMES
    message = "1.png: it has 40 x 30 pixels, but truth.json says 64 x 64; mend the size there"
    assert message in capsys.readouterr().err


def test_paths_on_the_page_start_at_the_folder_of_work(folder):
    paths = ["--truth", str(Path("truth.json").resolve()), "--results", "results.json"]
    assert main(["report", *paths, "--output", "out"]) == 0
    assert "true boxes: truth.json; detections: results.json" in Path("out/report.html").read_text(encoding="utf-8")


def test_a_path_that_is_not_utf_8_is_shown_with_escapes(folder):
    path = os.fsdecode(b"truth\xff.json")
    Path("truth.json").rename(path)
    assert main(["report", "--truth", path, "--results", "results.json", "--output", os.fsdecode(b"out\xff")]) == 0
    page = Path(os.fsdecode(b"out\xff"), "report.html").read_text(encoding="utf-8")
    assert "true boxes: truth\ufffd.json; detections: results.json" in page


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("annotations", "id", 1, "annotation ids occur more than once"),
        ("images", "id", 1, "image ids occur more than once"),
        ("categories", "id", 1, "category ids occur more than once"),
        ("images", "width", 0, "images need an integer 'id', a 'file_name' and a positive integer 'width'"),
    ],
)
def test_true_boxes_that_a_training_refuses_are_refused(folder, capsys, part, field, value, message):
    truth = make_truth()
    truth[part][1][field] = value
    Path("truth.json").write_text(json.dumps(truth))
    assert main(["report", *FILES, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert "truth.json cannot be used" in error
    assert message in error


def test_true_boxes_that_cannot_be_used_are_counted(folder, capsys):
    truth = make_truth()
    truth["annotations"].append({**truth["annotations"][0], "id": 9, "bbox": [5, 5, 0, 10]})
    Path("truth.json").write_text(json.dumps(truth))
    assert main(["report", *FILES, "--output", "out"]) == 0
    assert "1 true box cannot be used and is left out" in capsys.readouterr().out


def test_annotation_ids_below_zero_change_no_number(folder, capsys):
    assert main(["report", *FILES, "--output", "out", "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    truth = make_truth()
    for item in truth["annotations"]:
        item["id"] -= 3
    Path("truth.json").write_text(json.dumps(truth))
    assert main(["report", *FILES, "--output", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected


def test_a_run_that_was_not_evaluated_says_how(run_folder, capsys):
    (run_folder / "inference" / "coco_instances_results.json").unlink()
    assert main(["report", "--run", str(run_folder)]) == 2
    message = capsys.readouterr().err
    assert "evaluate first: train_net.py --eval-only, or give --truth and --results" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --run with the output folder of a training, or both --truth and --results"),
        (["--truth", "truth.json"], "both --truth and --results"),
        (["--run", "run", "--images", "images"], "--run and --images exclude each other"),
        ([*FILES, "train.max_iter=1"], "train.max_iter=1 is an override of a config, but only --run has one"),
        ([*FILES, "--worst", "0"], "--worst 0 leaves nothing to do"),
        ([*FILES, "--worst", "61"], "--worst 61 is too many; give 60 or less"),
        ([*FILES, "--max-detections", str(10**30)], "is too many; give 1000000 or less"),
        ([*FILES, "--max-detections", "0"], "--max-detections 0 leaves nothing to do"),
        ([*FILES, "--images", "gone"], "--images gone is no folder"),
        (["--run", "gone"], "there is no gone/config.yaml; name the output folder of a training"),
        (["--truth", "gone.json", "--results", "results.json"], "gone.json"),
        (
            ["--truth", "truth.json", "--results", "truth.json"],
            "truth.json has boxes without a score, as true boxes are",
        ),
        (["--truth", "truth.json", "--results", "dict.json"], "dict.json holds a JSON dict; a COCO results file is"),
    ],
)
def test_wrong_options_are_named(folder, capsys, options, message):
    Path("dict.json").write_text("{}")
    assert main(["report", *options, "--output", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_true_boxes_that_cannot_be_used_are_refused(folder, capsys):
    truth = make_truth()
    truth["annotations"] = truth["annotations"][4:]  # the crowd
    Path("truth.json").write_text(json.dumps(truth))
    assert main(["report", *FILES, "--output", "out"]) == 2
    assert "truth.json has no true boxes that can be used; `sparse-detr check-data` says why" in capsys.readouterr().err
