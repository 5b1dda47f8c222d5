"""The measurement of faithfulness goes on where it was stopped, and its table is the means of its numbers."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from sparse_detr.errors import UserError


@pytest.fixture
def script(load_script):
    return load_script("measure_faithfulness")


def row(score, dropped, number):
    return {"tokens": 10, "score": score, "dropped": dropped, "random_dropped": 1.0, "faithfulness": number}


SETTING = {"images": "test.json", "shares": [0.5, 1.0], "detections": 3, "draws": 2}
CONTENT = {
    "sparse": {
        "seed0": {
            "trained": {"a.png": [row(0.8, 0.5, 0.4), row(0.6, 0.5, 0.2)], "b.png": []},
            "random": {"a.png": [row(0.02, 1.0, 0.0)], "b.png": []},
            "correlation": {"a.png": 0.2, "b.png": None},
        }
    }
}


def test_the_table_holds_means_over_detections(script):
    cells = script.table(CONTENT).splitlines()[-1].strip("| ").split(" | ")
    assert cells == ["sparse", "10", "0.70", "0.35", "0.70", "0.30", "0.020", "0.000", "0.00", "0.20"]


def test_an_image_in_the_record_is_not_measured_again(script, tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"setting": SETTING, "models": CONTENT}))
    loaded = Namespace(model=None, preprocess=lambda image: pytest.fail(f"{image} is measured again"))
    monkeypatch.setattr(script, "Predictor", lambda *paths: loaded)
    monkeypatch.setattr(script, "load_config", lambda path: None)
    monkeypatch.setattr(script, "build_detector", lambda cfg: Namespace(eval=lambda: None))
    record = script.Record(path, SETTING)
    script.measure(record, "sparse", Path("seed0"), ["a.png", "b.png"], Namespace(test_images=tmp_path))
    assert record.content == CONTENT
    record.write()
    assert json.loads(path.read_text()) == {"setting": SETTING, "models": CONTENT}
    with pytest.raises(UserError, match=r"record.json is of \{.*'draws': 2\}, not of .*; give another --record"):
        script.Record(path, {**SETTING, "draws": 3})


@pytest.mark.parametrize("model", ["sparse", "sparse=nowhere*", "="])
def test_a_model_without_a_folder_is_refused(script, model):
    with pytest.raises(UserError, match="names no trained model"):
        script.seeds_of(model)
