"""Missed boxes stand out in the colour of their blame, and the bars are written."""

import numpy as np
import pytest
from PIL import Image

from sparse_detr.analysis.blame import BEATEN, FOUND, NOT_SELECTED
from sparse_detr.analysis.blame_report import summary
from sparse_detr.visualization.blame import COLORS, draw_bars, draw_verdicts, worst_images_page
from tests.analysis.blamed_objects import OBJECTS, made

GREY = np.full((500, 1000, 3), 128, np.uint8)


def with_box(verdict, box, **fields):
    item = made(verdict, **fields)
    return type(item)(**{**item.__dict__, "box": box})


def test_missed_boxes_are_thick_in_the_colour_of_their_blame_and_found_ones_thin():
    missed, found = with_box(NOT_SELECTED, (100.0, 100.0, 300.0, 300.0)), with_box(FOUND, (500.0, 100.0, 700.0, 300.0))
    drawn = draw_verdicts(GREY, [missed, found])
    assert drawn[200, 97].tolist() == list(COLORS[NOT_SELECTED])  # lines lie around their boxes
    assert drawn[200, 497].tolist() == list(COLORS[FOUND])
    widths = [(drawn[200, left - 20 : left + 20] != 128).any(-1).sum() for left in (100, 500)]
    assert widths[0] > 2 * widths[1] > 0


def test_a_missed_box_is_drawn_over_a_found_one():
    box = (100.0, 100.0, 300.0, 300.0)
    drawn = draw_verdicts(GREY, [with_box(BEATEN, box), with_box(FOUND, box)])
    assert drawn[200, 98].tolist() == list(COLORS[BEATEN])


@pytest.mark.parametrize("number", [1, 2, 9])
def test_the_contact_sheet_shows_the_worst_images(number):
    read = []

    def reader(name):
        read.append(name)
        return GREY

    page = worst_images_page(OBJECTS, reader, number)
    assert read == ["3.png", "2.png"][:number]
    assert page.shape[1:] == (1600, 3)
    assert (page == COLORS[BEATEN]).all(-1).any()


def test_the_contact_sheet_of_a_perfect_detector_says_so_and_reads_no_image():
    page = worst_images_page(OBJECTS[:2], lambda name: pytest.fail(name), 9)
    assert page.shape[1:] == (1600, 3)


def test_the_bars_hold_the_colours_of_the_blames_that_occur(tmp_path):
    draw_bars(summary(OBJECTS, ["cat", "dog"]), tmp_path / "blame.png", title="six objects")
    with Image.open(tmp_path / "blame.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    # 2 of 4 misses are beaten, 1 not selected
    areas = [(pixels == COLORS[verdict]).all(-1).sum() for verdict in (BEATEN, NOT_SELECTED)]
    assert areas[0] > areas[1] > 0


def test_bars_of_many_classes_and_of_no_object_can_be_drawn(tmp_path):
    names = [f"class {number}" for number in range(30)]
    draw_bars(summary([made(BEATEN, name=name) for name in names], names), tmp_path / "many.png", title="")
    draw_bars(summary([], names[:1]), tmp_path / "none.png", title="")
    assert {path.name for path in tmp_path.iterdir()} == {"many.png", "none.png"}
