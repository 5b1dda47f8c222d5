"""`predict` finds what the predictor finds, goes on where it was stopped, and shares the work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sparse_detr
from sparse_detr import Predictor
from sparse_detr.cli import predict as command
from sparse_detr.cli.main import main
from sparse_detr.predict.sources import VideoFrames
from tests.cli.test_demo import YAML, folder  # noqa: F401 a fixture
from tests.predict.test_sources import write_video

MODEL = ["--config-file", "sparse.py", "--weights", "sparse.pth", "--score-threshold", "0"]


def predict(*options, output="out", images="many"):
    return main(["predict", "--input", images, "--output", output, *MODEL, "--shard-size", "3", *options])


@pytest.fixture
def many(folder):  # noqa: F811
    """Seven images of two sizes in a folder `many`."""
    rng = np.random.default_rng(0)
    for index in range(7):
        path = folder / "many" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        size = (64, 96) if index % 3 else (96, 64)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return folder


def annotations(output):
    return json.loads(Path(output, "detections.json").read_text())["annotations"]


def test_every_picture_has_the_detections_of_the_predictor(many, capsys):
    assert predict() == 0
    assert "140 detections in 7 of 7 pictures; the results are in out" in capsys.readouterr().out
    assert json.loads(Path("out/detections.json").read_text())["categories"] == [
        {"id": 1, "name": "0"},  # the config names no data
        {"id": 2, "name": "1"},
    ]
    predictor = Predictor("sparse.py", "sparse.pth")
    for index in range(7):
        alone = predictor(many / "many" / f"{index}.png")
        found = [row for row in annotations("out") if row["image_id"] == index + 1]
        x, y, width, height = np.array([row["bbox"] for row in found]).T
        np.testing.assert_allclose(np.stack([x, y, x + width, y + height], 1), alone.pred_boxes.tensor, atol=0.01)
        assert [row["category_id"] - 1 for row in found] == alone.pred_classes.tolist()


def test_a_stopped_run_goes_on_with_the_shards_that_are_missing(many, monkeypatch):
    assert predict(output="whole") == 0
    real, calls = command.write_shard, []

    def stop(args, predictor, inputs, job, shard, found):
        calls.append(shard)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(args, predictor, inputs, job, shard, found)

    monkeypatch.setattr(command, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        predict(output="stopped")
    assert not Path("stopped/detections.json").exists()
    assert predict(output="stopped") == 0
    assert calls == [0, 1, 1, 2]
    assert Path("stopped/detections.json").read_bytes() == Path("whole/detections.json").read_bytes()


def test_a_killed_run_loses_at_most_one_shard(many):
    environment = {**os.environ, "PYTHONPATH": str(Path(sparse_detr.__file__).parents[1])}
    words = ["--input", "many", "--output", "killed", *MODEL, "--shard-size", "1", "--batch-size", "1"]
    process = subprocess.Popen([sys.executable, "-m", "sparse_detr.cli", "predict", *words], env=environment)
    first = Path("killed/shards/00000.json")
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = sorted(Path("killed/shards").glob("*.json"))
    stamps = [path.stat().st_mtime_ns for path in before]
    assert before
    assert main(["predict", *words]) == 0
    assert [path.stat().st_mtime_ns for path in before] == stamps  # none was done again
    assert predict(output="whole") == 0
    boxes = [[row["bbox"] for row in annotations(output)] for output in ("killed", "whole")]
    np.testing.assert_allclose(*boxes, atol=0.01)


def test_two_processes_share_the_work_and_the_last_one_writes_the_results(many, capsys):
    assert predict("--shard", "2/2", output="shared") == 0
    assert "this part is done; 2 of 3 shards are left to others" in capsys.readouterr().out
    assert not Path("shared/detections.json").exists()
    assert predict("--shard", "1/2", output="shared") == 0
    assert predict(output="alone") == 0
    assert annotations("shared") == annotations("alone")


def test_a_broken_picture_is_reported_and_passed(many, capsys):
    (many / "many" / "3.png").write_bytes(b"no image")
    assert predict("--format", "coco", "yolo", "pictures") == 0
    said = capsys.readouterr()
    assert "120 detections in 6 of 7 pictures" in said.out
    assert "cannot use many/3.png: not an image in a known format" in said.err
    assert sorted(path.name for path in Path("out/labels").iterdir()) == [f"{i}.txt" for i in (0, 1, 2, 4, 5, 6)]
    assert sorted(path.name for path in Path("out/pictures").iterdir()) == [f"{i}.jpg" for i in (0, 1, 2, 4, 5, 6)]


def test_nothing_but_broken_pictures_is_a_failure(many, capsys):
    for path in (many / "many").iterdir():
        path.write_bytes(b"no image")
    assert predict() == 1
    assert annotations("out") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0 cannot be used; give a whole number, 1 or more"),
        (["--shard-size", "0"], "--shard-size 0 cannot be used"),
        (["--shard", "3/2"], "--shard 3/2 is no part of the work"),
        (["--score-threshold", "50"], "--score-threshold 50 is no score"),
        (["--overlap", "1"], "--overlap 1 is no share of a slice"),
        (["--slice", "0"], "--slice 0 cannot be used"),
        (["--track"], "--track numbers objects through the frames of a video, but --input names none"),
        (["--budget", "2"], "--budget"),
        (["--weights", "gone.pth"], "gone.pth"),
        (["--input", "gone"], "gone: no image found"),
    ],
)
def test_wrong_options_are_named(many, capsys, options, message):
    assert predict(*options) == 2
    assert message in capsys.readouterr().err


def test_other_settings_in_the_same_folder_are_refused(many, capsys):
    assert predict() == 0
    assert predict("--budget", "0.5") == 2
    assert "is of a run with budget None, not '0.5'; give another --output" in capsys.readouterr().err


def test_other_pictures_of_the_same_names_are_refused_and_the_same_ones_elsewhere_are_not(many, capsys):
    shutil.copytree("many", "mounted")  # keeps the times
    shutil.copytree("many", "other", copy_function=shutil.copyfile)
    assert predict() == 0
    assert predict(images="mounted") == 0
    assert predict(images="other") == 2
    said = capsys.readouterr().err
    assert "is of 7 other pictures than these 7 (other names, sizes or times of change); give another --output" in said


def test_a_changed_config_in_the_same_folder_is_refused(many, capsys):
    assert predict() == 0
    text = Path("sparse.py").read_text()
    Path("sparse.py").write_text(text.replace("short_size = 64", "short_size = 32"))
    assert predict() == 2
    said = capsys.readouterr().err
    assert "is of a run with dataloader.test.mapper.augmentations.short_size '64', not '32'" in said
    Path("sparse.py").write_text(f"{text}\ntrain.device = 'cuda'\ntrain.init_checkpoint = 'other.pth'\n")
    assert predict() == 0  # neither changes a detection


def test_a_changed_yaml_config_in_the_same_folder_is_refused(many, capsys):
    words = ["--config-file", "sparse.yaml", "--train-json", "classes.json"]
    Path("sparse.yaml").write_text(YAML)
    assert predict(*words) == 0
    Path("sparse.yaml").write_text(YAML.replace("MIN_SIZE_TEST: 64", "MIN_SIZE_TEST: 32"))
    assert predict(*words) == 2
    assert "is of a run with INPUT.MIN_SIZE_TEST '64', not '32'" in capsys.readouterr().err


def test_videos_that_differ_only_by_their_suffix_are_both_written(folder):  # noqa: F811
    write_video(folder / "clip.avi", [40] * 2)
    write_video(folder / "clip.mp4", [240] * 3)
    words = ["predict", "--input", "clip.avi", "clip.mp4", "--output", "out", *MODEL, "--score-threshold", "1"]
    assert main([*words, "--format", "pictures"]) == 0
    lengths = {path.name: len(VideoFrames(str(path)).names) for path in Path("out/videos").iterdir()}
    assert lengths == {"clip.avi.mp4": 2, "clip.mp4.mp4": 3}


@pytest.mark.parametrize("images", ["many", "many/*/*"])
def test_the_output_may_lie_in_the_input(many, images):
    shutil.copytree("many", "many/sub")
    words = ["--format", "coco", "yolo", "pictures"]
    assert predict(*words, output="many/found", images=images) == 0
    count = len(list(Path("many/found/pictures").rglob("*.jpg")))
    assert count == (14 if images == "many" else 7)
    Path("many/found/shards/00001.json").unlink()
    assert predict(*words, output="many/found", images=images) == 0
    assert len(list(Path("many/found/pictures").rglob("*.jpg"))) == count


def test_files_of_another_origin_are_not_written_over(many, capsys):
    label = many / "labels" / "0.txt"
    label.parent.mkdir()
    label.write_text("0 0.5 0.5 1 1\n")
    assert predict("--format", "yolo", output=".") == 2
    assert "labels exists and is not of `sparse-detr predict`; give another --output" in capsys.readouterr().err
    assert label.read_text() == "0 0.5 0.5 1 1\n"
    assert predict(output=".") == 0  # writes no labels
