"""The folder of a report: numbers, pictures, and a page that holds everything itself."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from sparse_detr.report.write import write_report
from sparse_detr.visualization.report import COLORS, draw_confusion, draw_curves, worst_page


@pytest.fixture
def pictures():
    return {"1.png": np.full((64, 64, 3), 200, np.uint8)}


def write(folder, numbers, pictures):
    return write_report(folder, numbers, title="Report <1>", about="truth & results", pictures=pictures)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_numbers_page_and_pictures_are_written(tmp_path, numbers, pictures):
    files = write(tmp_path / "new" / "report", numbers, pictures)
    assert files == ["report.json", "report.html", "curves.png", "confusion.png", "calibration.png", "worst.png"]
    assert {path.name for path in (tmp_path / "new" / "report").iterdir()} == set(files)
    assert json.loads((tmp_path / "new" / "report" / "report.json").read_text()) == numbers
    for name in files[2:]:
        assert Image.open(tmp_path / "new" / "report" / name).size > (300, 300)


def test_the_page_holds_everything_itself(tmp_path, numbers, pictures):
    write(tmp_path, numbers, pictures)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"https?://|//cdn|@import|url\(", page) == []
    assert "<title>Report &lt;1&gt;</title>" in page
    data = data_of(page)
    assert data["rows"][1][0] == "dog </script>"
    assert data["sentences"] == numbers["sentences"]
    kinds = [picture["url"].split(";")[0] for picture in data["pictures"]]
    assert kinds == ["data:image/png"] * 3 + ["data:image/jpeg"]
    assert data["errors"][0][1] == "wrong class"
    assert data["errors"][1][1] == "1"


def test_without_images_there_is_no_contact_sheet_and_an_old_one_goes(tmp_path, numbers, pictures):
    write(tmp_path, numbers, pictures)
    assert "worst.png" not in write(tmp_path, numbers, {})
    assert not (tmp_path / "worst.png").exists()
    assert len(data_of((tmp_path / "report.html").read_text())["pictures"]) == 3


def test_the_contact_sheet_has_each_kind_of_box_in_its_color(numbers, pictures):
    sheet = worst_page(numbers["worst"], pictures)
    [panel] = np.argwhere((sheet == 200).all(-1)).min(0)[None]  # the top left of the picture
    scale = np.argwhere((sheet == 200).all(-1)).max(0)[1] - panel[1]

    def color_at(x, y):
        top, left = (panel + np.array([y, x]) * scale / 64).round().astype(int)
        return tuple(sheet[top, left].tolist())

    assert near(color_at(25, 0), COLORS["false"])  # on the missed dog, a cat
    assert min(near(sheet, color).sum() for color in COLORS.values()) > 100


def near(pixels, color):
    return np.abs(np.asarray(pixels, dtype=int) - color).max(-1) < 30


def many_classes(numbers, count):
    """Return the numbers with so many classes, all like the first."""
    curves = numbers["curves"]
    matrix = np.zeros((count + 1, count + 1), dtype=int)
    matrix[np.arange(count), np.arange(count)] = np.arange(count)
    return {
        **numbers,
        "classes": [{**numbers["classes"][0], "name": f"class {number}"} for number in range(count)],
        "curves": {**curves, "precision": [curves["precision"][0]] * count, "f1": [curves["f1"][0]] * count},
        "confusion": {"names": [f"class {n}" for n in range(count)] + ["background"], "matrix": matrix.tolist()},
    }


@pytest.mark.parametrize("count", [1, 9, 80])
def test_any_number_of_classes_can_be_drawn(tmp_path, numbers, count):
    many = many_classes(numbers, count)
    for number, draw in enumerate((draw_curves, draw_confusion)):
        (tmp_path / f"{number}.png").write_bytes(draw(many))
        assert 300 < max(Image.open(tmp_path / f"{number}.png").size) < 2000
