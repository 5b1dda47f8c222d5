"""Boxes are where they should be, in the colour of their class, and labels do not hide them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sparse_detr.visualization.colors import class_color, text_color
from sparse_detr.visualization.detections import Detection, _Canvas, _intersections, draw_detections, list_detections

GREY = np.full((640, 1280, 3), 128, np.uint8)


def random_detections(count: int, *, size: float) -> list[Detection]:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, [1280 - size, 640 - size], (count, 2))
    return [
        Detection((x, y, x + size, y + size), score=float(score), label=label, name=f"class {label}")
        for (x, y), score, label in zip(corners, generator.random(count), generator.integers(0, 3, count).tolist())
    ]


def labels_of(detections: list[Detection]) -> np.ndarray:
    """Places (T, 4) of the labels that were written."""
    canvas = _Canvas(image=GREY, scale=1)
    for detection in detections:
        canvas.draw_label(detection, detections)
    return np.array(canvas.labels)


def test_a_sure_box_is_drawn_in_the_colour_of_its_class_at_its_place():
    drawn = draw_detections(GREY, [Detection((100, 200, 400, 500), score=1.0, label=3, name="dog")])
    assert np.abs(drawn[350, 100].astype(int) - class_color(3)).max() < 40
    assert np.array_equal(drawn[350, 250], GREY[0, 0])


def test_a_doubtful_box_is_fainter_than_a_sure_one():
    def distance_from_grey(score: float) -> int:
        drawn = draw_detections(GREY, [Detection((100, 200, 400, 500), score=score, label=1, name="dog")])
        return np.abs(drawn[350, 90:110].astype(int) - 128).sum()

    assert distance_from_grey(0.3) < distance_from_grey(0.9)


def test_few_objects_all_get_a_label():
    detections = [Detection((x, 300, x + 100, 400), score=0.5, label=0, name="cat") for x in (100, 400, 700)]
    assert len(labels_of(detections)) == 3


def test_labels_of_many_objects_stay_apart_in_the_picture_and_off_the_boxes():
    detections = random_detections(150, size=40)
    labels = labels_of(detections)
    assert 5 < len(labels) < 150
    assert labels.min() >= 0
    assert (labels[:, 2] <= 1280).all()
    assert (labels[:, 3] <= 640).all()
    boxes = np.array([detection.box for detection in detections])
    for index, label in enumerate(labels):
        assert _intersections(label, np.delete(labels, index, 0)).max() == 0
        assert _intersections(label, boxes).max() <= 0.3 * 40 * 40 + 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (3, 900), (480, 640), (3000, 10)])
@pytest.mark.parametrize("count", [0, 3])
def test_pictures_of_any_shape_with_and_without_objects_can_be_drawn(shape, count):
    height, width = shape
    box = (0.0, 0.0, float(width), float(height))
    detections = [Detection(box, score=0.8, label=label, name=str(label)) for label in range(count)]
    drawn = draw_detections(np.zeros((height, width, 3), np.uint8), detections, caption="caption")
    assert drawn.dtype == np.uint8
    assert max(drawn.shape[:2]) >= 1280


def test_the_legend_of_many_classes_does_not_run_over():
    detections = [Detection((0, 0, 9, 9), score=0.5, label=label, name=f"some class {label}") for label in range(90)]
    assert draw_detections(GREY, detections).shape[1] == 1280


def test_instances_become_a_list_from_the_threshold_up_best_first():
    instances = SimpleNamespace(
        pred_boxes=SimpleNamespace(tensor=torch.tensor([[0.0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]])),
        scores=torch.tensor([0.25, 0.1, 0.5]),
        pred_classes=torch.tensor([0, 0, 7]),
    )
    detections = list_detections(instances, ["tree"], score_threshold=0.25)
    assert [(detection.name, detection.score) for detection in detections] == [("7", 0.5), ("tree", 0.25)]
    assert detections[1].box == (0, 0, 1, 1)


def test_colours_of_the_first_hundred_classes_differ():
    assert len({class_color(label) for label in range(100)}) == 100


def test_text_contrasts_with_its_background():
    assert text_color((255, 255, 255)) < (128, 128, 128) < text_color((0, 0, 0))
