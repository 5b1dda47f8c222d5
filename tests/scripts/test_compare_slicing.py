import numpy as np
import pytest

from sparse_detr.errors import UserError

RESULTS = [
    ("slices", "overlap 20%", 0, 40.0, 2.0),
    ("slices", "overlap 20%", 1, 44.0, 2.0),
    ("whole", "0.1", 0, 41.0, 1.0),
    ("whole", "0.1", 1, 43.0, 1.2),
    ("whole", "1", 0, 50.0, 3.0),
    ("whole", "1", 1, 52.0, 3.0),
]


@pytest.fixture
def script(load_script):
    return load_script("compare_slicing")


@pytest.fixture
def record():
    results = {
        f"{kind} {name} {seed}": {
            "kind": kind,
            "name": name,
            "seed": seed,
            "AP": score / 2,
            "AP50": score,
            "seconds": s,
        }
        for kind, name, seed, score, s in RESULTS
    }
    return {"results": results, "machine": "a CPU"}


def test_seeds_are_averaged(script, record):
    lines = script.table(record).splitlines()
    assert lines[2] == "| slices, overlap 20% | 21.0 ± 1.4 | 42.0 ± 2.8 | 2.00 |"
    assert lines[3] == "| whole scene, budget 0.1 | 21.0 ± 0.7 | 42.0 ± 1.4 | 1.10 |"


def test_the_answer_compares_slices_with_the_best_budget_that_is_as_fast(script, record):
    (answer,) = script.answers(record)
    assert answer.endswith("the whole scene in at most this time: AP50 42.0 in 1.10 s, at the budget 0.1.")
    for key in ("whole 0.1 0", "whole 0.1 1"):
        record["results"][key]["seconds"] = 9.0
    (answer,) = script.answers(record)
    assert answer.endswith("the whole scene takes longer at every budget.")


def test_detections_are_scored_and_timed(script, record, tmp_path):
    truth = {
        "images": [{"id": 7, "file_name": "a.png", "width": 50, "height": 40}],
        "categories": [{"id": 3, "name": "tree"}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0}],
    }
    calls = []

    def detect(scene):
        calls.append(scene.shape)
        return [{"bbox": [1, 2, 10, 20], "score": 0.9, "category_id": 0}]

    contestant = script.Contestant("whole", "0.3", 0, detect)
    found = {"results": {contestant.key: {}}}
    script.measure([contestant], [(7, np.zeros((40, 50, 3), np.uint8))], truth, 2, found)
    assert found["results"]["whole 0.3 0"]["AP50"] == pytest.approx(100)
    assert calls == [(40, 50, 3)] * 3
    script.draw(record, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "there is nothing to compare"), (["--whole", "a", "b", "--overlaps", "1"], "--overlaps 1 is no share")],
)
def test_wrong_options_are_named(script, options, message):
    with pytest.raises(UserError, match=message):
        script.parse(["--truth", "a.json", "--images", "b", *options])
