"""The folder of a report: numbers, pictures, and a page that holds everything itself."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from sparse_detr.errors import UserError
from sparse_detr.report.numbers import report_numbers
from sparse_detr.report.words import duplicates
from sparse_detr.report.write import write_report
from sparse_detr.visualization import report
from sparse_detr.visualization.figures import png_of
from sparse_detr.visualization.report import (
    COLORS,
    class_names,
    draw_calibration,
    draw_confusion,
    draw_curves,
    worst_page,
)
from tests.report.made_up import make_results, make_truth


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
    assert [text for text, cost in zip(data["sentences"], data["is_cost"], strict=True) if cost] == [
        duplicates(numbers)
    ]
    kinds = [picture["url"].split(";")[0] for picture in data["pictures"]]
    assert kinds == ["data:image/png"] * 3 + ["data:image/jpeg"]
    assert data["errors"][0][1] == "wrong class"
    assert data["errors"][1][1] == "1"


def test_without_images_there_is_no_contact_sheet_and_an_old_one_goes(tmp_path, numbers, pictures):
    write(tmp_path, numbers, pictures)
    assert "worst.png" not in write(tmp_path, numbers, {})
    assert not (tmp_path / "worst.png").exists()
    assert len(data_of((tmp_path / "report.html").read_text())["pictures"]) == 3


def test_a_folder_in_the_place_of_an_old_contact_sheet_is_named(tmp_path, numbers):
    (tmp_path / "worst.png").mkdir()
    with pytest.raises(UserError, match="cannot write the file .*worst.png"):
        write(tmp_path, numbers, {})


def test_no_name_of_a_class_can_end_the_script_or_begin_a_comment(tmp_path, numbers):
    rows = [{**row, "name": name} for row, name in zip(numbers["classes"], ("<!--<script>", "</script>", "<b>"))]
    write(tmp_path, {**numbers, "classes": rows}, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    block = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert "<" not in block
    assert [row[0] for row in json.loads(block)["rows"]] == ["<!--<script>", "</script>", "<b>", "all"]


def test_the_contact_sheet_has_each_kind_of_box_in_its_color(numbers, pictures):
    sheet = worst_page(numbers["worst"], pictures)
    [panel] = np.argwhere((sheet == 200).all(-1)).min(0)[None]  # the top left of the picture
    scale = np.argwhere((sheet == 200).all(-1)).max(0)[1] - panel[1]

    def color_at(x, y):
        top, left = (panel + np.array([y, x]) * scale / 64).round().astype(int)
        return tuple(sheet[top, left].tolist())

    assert near(color_at(25, 0), COLORS["missed"])  # the missed dog, on a false cat
    assert near(color_at(10.4, 5), COLORS["false"])  # the duplicate, on the right cat; lines lie around their boxes
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


def test_the_classes_of_errors_are_written_where_there_are_several(numbers, pictures):
    plain = worst_page(numbers["worst"], pictures, numbers["classes"][:1])
    assert np.array_equal(plain, worst_page(numbers["worst"], pictures))
    named = worst_page(numbers["worst"], pictures, numbers["classes"])
    assert near(named, COLORS["missed"]).sum() > near(plain, COLORS["missed"]).sum() + 1000
    [image] = numbers["worst"]
    crowded = [{**image, "false": 19}]
    assert np.array_equal(worst_page(crowded, pictures, numbers["classes"]), worst_page(crowded, pictures))


def test_boxes_are_at_their_places_in_a_reduced_picture(numbers):
    large = [{**image, "width": 640, "height": 640} for image in numbers["worst"]]
    for image in large:
        image["boxes"] = [{**box, "bbox": [10 * side for side in box["bbox"]]} for box in image["boxes"]]
    small = np.full((64, 64, 3), 200, np.uint8)
    assert np.array_equal(worst_page(large, {"1.png": small}), worst_page(numbers["worst"], {"1.png": small}))


def test_calibration_without_a_detection_that_counts_can_be_drawn():
    truth = make_truth()
    on_crowd = [row for row in make_results() if row["image_id"] == 3 and row["category_id"] == 5]
    picture = draw_calibration(report_numbers(truth, on_crowd))
    assert Image.open(io.BytesIO(picture)).size > (300, 300)


NAMES = [
    "$\\frac$",
    "$5 and $9",
    "_hidden",
    "cat",
    "cat",
    "\u4e2d\u6587",
    "a\nb",
    "human.pedestrian.construction_worker",
]


@pytest.mark.filterwarnings("error::UserWarning")  # matplotlib warns of letters that its font lacks
def test_any_names_of_classes_can_be_drawn_and_each_is_in_the_legend_once(numbers, monkeypatch):
    many = many_classes(numbers, len(NAMES))
    many["classes"] = [
        {**row, "name": name, "category_id": number}
        for number, (row, name) in enumerate(zip(many["classes"], NAMES), 1)
    ]
    assert class_names(many) == [
        *("$\\frac$", "$5 and $9", "_hidden", "cat (class 4)", "cat (class 5)", "class 6", "a b"),
        "human.pedes...ion_worker",
    ]
    drawn = []
    monkeypatch.setattr(report, "png_of", lambda figure: drawn.append(figure) or png_of(figure))
    draw_curves(many)
    draw_confusion(many)
    [legend] = drawn[0].legends
    assert [text.get_text() for text in legend.get_texts()] == [*class_names(many), "all detections together"]
    assert legend.get_window_extent().x0 >= 0
    assert legend.get_window_extent().x1 <= drawn[0].bbox.x1


@pytest.fixture
def counts(numbers, monkeypatch):
    """Return a function that returns the names and numbers in the picture of a confusion matrix."""

    def drawn(matrix):
        many = many_classes(numbers, len(matrix) - 1)
        many["confusion"]["matrix"] = matrix.tolist()
        found = []
        monkeypatch.setattr(report, "png_of", found.append)
        draw_confusion(many)
        axis = found[0].axes[0]
        names = [label.get_text() for label in axis.get_yticklabels()]
        texts = {
            (int(text.get_position()[1]), int(text.get_position()[0])): int(text.get_text()) for text in axis.texts
        }
        return names, texts

    return drawn


def test_up_to_twenty_classes_have_all_numbers_and_more_have_those_off_the_diagonal(counts):
    for count, diagonal in ((20, [7] * 20), (21, [])):
        matrix = 7 * np.eye(count + 1, dtype=int)
        matrix[-1, -1], matrix[0, 1], matrix[-1, 2] = 0, 3, 5
        _, texts = counts(matrix)
        assert [texts[place, place] for place in range(count) if (place, place) in texts] == diagonal
        assert (texts[0, 1], texts[count, 2]) == (3, 5)


def test_of_many_classes_those_with_most_errors_are_shown_and_the_others_together(counts):
    matrix = np.zeros((201, 201), dtype=int)
    matrix[np.arange(200), np.arange(200)] = 2
    matrix[10:50, -1] = 4  # missed
    matrix[5, 10], matrix[7, 199], matrix[7, -1], matrix[-1, 199] = 3, 1, 1, 2
    names, texts = counts(matrix)
    assert names == [*(f"class {number}" for number in range(10, 50)), "160 other classes", "no object"]
    assert texts[40, 0] == 3
    assert texts[0, 41] == 4
    assert (texts[40, 41], texts[41, 40]) == (1, 2)


def test_the_page_says_which_picture_is_wide(tmp_path, numbers, pictures):
    write(tmp_path, numbers, pictures)
    shown = data_of((tmp_path / "report.html").read_text())["pictures"]
    assert [picture["title"] for picture in shown if picture["is_wide"]] == ["Curves"]


@pytest.mark.parametrize("count", [1, 9, 80])
def test_any_number_of_classes_can_be_drawn(tmp_path, numbers, count):
    many = many_classes(numbers, count)
    for number, draw in enumerate((draw_curves, draw_confusion)):
        (tmp_path / f"{number}.png").write_bytes(draw(many))
        assert 300 < max(Image.open(tmp_path / f"{number}.png").size) < 2000
