"""`pack` writes a folder that the predictor and `predict` load."""

import json
from pathlib import Path

import pytest

from sparse_detr import Predictor
from sparse_detr.cli.main import main
from tests.cli.test_demo import folder  # noqa: F401 a fixture

MODEL = ["--config-file", "sparse.py", "--weights", "sparse.pth"]


def test_a_packed_folder_predicts_without_the_files_that_it_was_made_of(folder, capsys):  # noqa: F811
    Path("notes.md").write_text("Seven images.")
    assert main(["pack", *MODEL, "--output", "packed", "--notes", "notes.md", "--budget", "0.5"]) == 0
    assert "load it with Predictor('packed')" in capsys.readouterr().out
    assert "Seven images." in Path("packed/README.md").read_text()
    expected = Predictor("sparse.py", "sparse.pth", budget=0.5)("images/wide.png")
    Path("sparse.py").unlink()
    Path("sparse.pth").unlink()
    command = ["predict", "--config-file", "packed", "--input", "images", "--output", "out", "--score-threshold", "0"]
    assert main(command) == 0
    assert main([*command, "--opts", "model.postprocess.num_detections=5"]) == 2
    assert "--opts changes a config, but packed holds a whole detector" in capsys.readouterr().err
    found = json.loads(Path("out/detections.json").read_text())
    image = next(image["id"] for image in found["images"] if image["file_name"] == "wide.png")
    scores = [row["score"] for row in found["annotations"] if row["image_id"] == image]
    assert scores == pytest.approx(expected.scores.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "images"], "images exists; give another name, or --force to replace it"),
        (["--output", "packed", "--notes", "gone.md"], "--notes gone.md cannot be read"),
        (["--output", "packed", "--weights", "gone.pth"], "gone.pth"),
        (["--output", "packed", "--score-threshold", "2"], "--score-threshold 2 is no score"),
    ],
)
def test_wrong_options_are_named(folder, capsys, options, message):  # noqa: F811
    assert main(["pack", *MODEL, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("packed").exists()


def test_predict_takes_the_options_of_a_packed_folder(folder, capsys):  # noqa: F811
    scores = Predictor("sparse.py", "sparse.pth")("images/wide.png").scores.tolist()
    between = [(scores[n - 1] + scores[n]) / 2 for n in (5, 2)]
    assert main(["pack", *MODEL, "--output", "packed", "--score-threshold", repr(between[0])]) == 0
    command = ["predict", "--config-file", "packed", "--input", "images/wide.png"]
    assert main([*command, "--output", "own"]) == 0
    assert main([*command, "--output", "given", "--score-threshold", repr(between[1])]) == 0
    counts = [len(json.loads(Path(name, "detections.json").read_text())["annotations"]) for name in ("own", "given")]
    assert counts == [5, 2]
