"""Boxes are drawn so that what is in them can be seen, and pictures of all shapes share a sheet."""

import numpy as np

from sparse_detr.visualization.outlines import Outline, at_most, draw_outlines, in_rows
from sparse_detr.visualization.page import Panel

RED, BLUE = (222, 28, 40), (28, 92, 235)
GREY = np.full((500, 1000, 3), 128, np.uint8)


def line_of(drawn, color, row):
    """Return the columns of a row that have a color."""
    return np.flatnonzero((drawn[row] == color).all(-1)).tolist()


def test_a_line_lies_around_its_box_and_is_as_thick_as_a_quarter_of_its_shorter_side():
    for side, thick in ((4, 2), (12, 3), (20, 5), (200, 8)):
        drawn = draw_outlines(GREY, [Outline((100, 100, 100 + side, 100 + side), RED, True)])
        left, right = [*range(100 - thick, 100)], [*range(100 + side, 100 + side + thick)]
        assert line_of(drawn, RED, 100 + side // 2) == left + right
        assert (drawn[100 : 100 + side, 100 : 100 + side] == 128).all()


def test_a_line_at_the_border_of_the_image_lies_within():
    drawn = draw_outlines(GREY, [Outline((0, 0, 1000, 500), RED, True)])
    assert line_of(drawn, RED, 250) == [*range(8), *range(992, 1000)]
    beyond = draw_outlines(GREY, [Outline((-1e300, -50, float("inf"), 1e9), RED, True)])
    assert np.array_equal(beyond, drawn)


def test_the_last_of_the_strong_boxes_is_on_top():
    box = (100, 100, 300, 300)
    drawn = draw_outlines(GREY, [Outline(box, BLUE, True), Outline(box, RED, True), Outline(box, BLUE, False)])
    assert line_of(drawn, BLUE, 200) == []
    assert line_of(drawn, RED, 200)


def test_a_text_is_above_or_below_its_box_and_always_in_the_picture():
    for box, below, rows in (
        ((100, 100, 300, 300), False, (60, 92)),
        ((100, 100, 300, 300), True, (308, 340)),
        ((100, 2, 300, 300), False, (0, 32)),
        ((100, 100, 300, 498), True, (468, 500)),
    ):
        plain = draw_outlines(GREY, [Outline(box, RED, True)])
        drawn = draw_outlines(GREY, [Outline(box, RED, True, "cat", below)])
        changed = np.flatnonzero((drawn != plain).any((1, 2)))
        assert rows[0] <= changed.min() < changed.max() <= rows[1]


def test_an_image_is_reduced_but_never_enlarged():
    assert at_most(np.zeros((3000, 4000, 3), np.uint8)).shape == (750, 1000, 3)
    assert at_most(np.zeros((1, 3000, 3), np.uint8)).shape == (1, 1000, 3)
    assert at_most(GREY[:50, :60]).shape == (50, 60, 3)


def test_pictures_of_different_shapes_get_cells_of_one_shape():
    shapes = [(60, 600), (600, 60), (64, 64), (1, 3000)]
    rows = in_rows([Panel(np.full((*shape, 3), 100, np.uint8), "") for shape in shapes])
    assert [len(row) for row in rows] == [3, 3]
    assert {panel.picture.shape for row in rows for panel in row} == {(286, 520, 3)}  # 0.55 is the median proportion
    grey = [(panel.picture == 100).all(-1).any() for row in rows for panel in row]
    assert grey == [True] * 4 + [False] * 2


def test_pictures_of_one_shape_stay_as_they_are():
    panels = [Panel(GREY, ""), Panel(GREY, "")]
    assert in_rows(panels) == [panels]
