"""Both ways read the same images and find the same; the table is the medians of paired parts."""

import json
from argparse import Namespace

import numpy as np
import pytest
from PIL import Image

from sparse_detr.errors import UserError
from tests.test_predictor import folder, predictor  # noqa: F401 fixtures


@pytest.fixture
def script(load_script):
    return load_script("measure_predict")


def test_both_ways_find_the_same(script, predictor, folder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(script, "THRESHOLD", 0.0)
    (tmp_path / "from").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "from" / "a.png")
    files = script.make_images(str(tmp_path / "from"), tmp_path / "images", 3)
    sizes = {Image.open(file).size for file in files}
    assert sizes <= set(script.SIZES)
    script.loop(predictor, files, tmp_path / "loop")
    script.predict(predictor, files, tmp_path / "predict", 2)
    looped = json.loads((tmp_path / "loop" / "detections.json").read_text())
    predicted = json.loads((tmp_path / "predict" / "detections.json").read_text())["annotations"]
    assert [row["image_id"] for row in predicted] == [row["image_id"] for row in looped]
    np.testing.assert_allclose([row["score"] for row in predicted], [row["score"] for row in looped], atol=1e-4)


def test_ratios_are_of_the_same_parts(script):
    times = {"loop": [(2.0, 4.0), (6.0, 9.0), (3.0, 3.0)], "predict": [(1.0, 4.0), (2.0, 3.0), (3.0, 2.0)]}
    text = script.table(times, Namespace(count=22, batch_size=8, optimize=False))
    assert "| a loop over `Predictor` | 11.0 | 2.00 | 16.0 |" in text
    assert "Median ratio over 3 parts in turn: 2.00x in wall time, 1.50x in CPU time" in text


def test_a_part_larger_than_the_whole_is_refused(script):
    options = ["--config-file", "a", "--weights", "b", "--images", "c", "--count", "3", "--part", "4"]
    with pytest.raises(UserError, match="--part 4 does not fit --count 3"):
        script.main(options)
