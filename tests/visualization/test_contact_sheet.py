import numpy as np

from sparse_detr.visualization.colors import class_color
from sparse_detr.visualization.contact_sheet import Sample, draw_contact_sheet


def sample(width, height, boxes=((5, 5, 30, 25),), labels=(0,), name="a.png"):
    return Sample(np.full((height, width, 3), 255, np.uint8), np.array(boxes, dtype=float), list(labels), name)


def count(sheet, label):
    return int((sheet == np.array(class_color(label))).all(axis=-1).sum())


def test_boxes_have_the_colour_of_their_class_and_the_legend_only_the_classes_on_the_sheet():
    sheet = draw_contact_sheet([sample(60, 40), sample(40, 60, labels=[2])], ["a", "b", "c"], title="t")
    # The outlines: 3 pixels thick, 25 x 20 pixels enlarged by 380 / 60; in the legend 15 x 15 pixels.
    perimeter = 2 * (25 + 20) * 380 / 60 * 3
    for label in (0, 2):
        assert 0.9 * perimeter < count(sheet, label) - 15 * 15 < 1.1 * perimeter
    assert count(sheet, 1) == 0


def test_a_sheet_has_rows_of_four_and_takes_images_without_boxes_and_of_any_shape():
    empty = Sample(
        np.zeros((1, 900, 3), np.uint8), np.zeros((0, 4)), [], "a name that is much too long for one line.png"
    )
    one, five = (draw_contact_sheet([empty] * number, [], title="t") for number in (1, 5))
    assert one.dtype == np.uint8
    assert five.shape[1] > one.shape[1]
    assert five.shape[0] - one.shape[0] == 380 + 26 + 18


def test_many_classes_break_the_legend_into_lines():
    names = [f"a class with a long name {number}" for number in range(12)]
    boxes = [(1, 1, 20, 20)] * 12
    few = draw_contact_sheet([sample(60, 40, boxes[:2], range(2))], names, title="t")
    many = draw_contact_sheet([sample(60, 40, boxes, range(12))], names, title="t")
    assert many.shape[0] > few.shape[0]
    assert all(count(many, label) for label in range(11))
