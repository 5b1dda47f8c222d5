import pytest


@pytest.fixture
def script(load_script):
    return load_script("compare_coco_evaluators")


def test_two_evaluators_give_the_same_scores_of_the_generated_data(script):
    truth, detections = script.make_data(6, 20)
    assert len(detections) == 6 * 20
    scores = {name: script.measure(name, truth, detections)["stats"] for name in ("pycocotools", "hotcoco")}
    assert scores["hotcoco"] == scores["pycocotools"]
    assert 0.02 < scores["hotcoco"][0] < 0.98


def test_the_table_names_the_largest_difference(script):
    one = {"seconds": 1, "stats": [0.5, 0.25]}
    table = script.table({"pycocotools": one, "other": {"seconds": 0.5, "stats": [0.5, 0.125]}})
    assert table.splitlines()[-1] == "| other | 0.50 | 1e-01 |"
