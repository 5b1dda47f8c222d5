"""Pictures of one size are detected together, each gives what it gives alone, and a bad one is passed on."""

import threading

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from sparse_detr.errors import ImageError
from sparse_detr.predict.detect import AHEAD, MOST_READERS, detect_in_slices, detect_pictures, readers_of
from sparse_detr.predict.job import Found


class Counting:
    """Stands for a predictor: finds one box in every picture, as large as the picture; remembers its batches."""

    def __init__(self):
        self.batches = []

    def preprocess(self, picture):
        if picture == "torn":
            raise ImageError("torn: cannot be decoded")
        height, width = picture
        return {"image": torch.zeros(3, height, width), "height": height, "width": width}

    def detect(self, inputs, *, score_threshold):
        self.batches.append([item["image"].shape[1] for item in inputs])
        found = []
        for item in inputs:
            instances = Instances((item["height"], item["width"]))
            instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, item["width"], item["height"]]]))
            instances.scores = torch.tensor([score_threshold])
            instances.pred_classes = torch.tensor([2])
            found.append(instances)
        return found


def detect(sizes, batch_size, readers=MOST_READERS):
    predictor = Counting()
    pictures = [(number, f"{number}.jpg", size) for number, size in enumerate(sizes)]
    found = detect_pictures(predictor, pictures, batch_size=batch_size, readers=readers, score_threshold=0.5)
    return sorted(found, key=lambda one: one.number), predictor.batches


@pytest.mark.parametrize("readers", [0, 1, MOST_READERS])
def test_pictures_of_one_size_go_together_and_the_rest_at_the_end(readers):
    found, batches = detect([(10, 5), (20, 5), (10, 5), (20, 5), (10, 5)], 2, readers)
    assert batches == [[10, 10], [20, 20], [10]]
    assert found[1] == Found(1, "1.jpg", 5, 20, [[0.0, 0.0, 5.0, 20.0]], [0.5], [2])
    assert [one.height for one in found] == [10, 20, 10, 20, 10]


def test_not_more_than_some_batches_wait_for_company():
    sizes = [(height, 5) for height in range(1, 2 * AHEAD + 2)]  # no two of one size
    found, batches = detect(sizes, 2)
    assert [one.number for one in found] == list(range(len(sizes)))
    assert batches[0] == [1]  # when 2 * AHEAD wait, one of the largest groups goes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize(
    ("device", "cores", "threads", "readers"),
    [("cpu", 2, 2, 0), ("cpu", 2, 1, 1), ("cpu", 4, 8, 0), ("cpu", 64, 8, MOST_READERS), ("cuda", 2, 2, MOST_READERS)],
)
def test_readers_take_the_cores_that_the_model_leaves_free(monkeypatch, device, cores, threads, readers):
    monkeypatch.setattr("sparse_detr.predict.detect.num_cpus", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert readers_of(torch.device(device)) == readers


def test_without_readers_a_picture_is_read_when_its_turn_comes():
    read = []

    class Noting(Counting):
        def preprocess(self, picture):
            read.append((picture, threading.current_thread()))
            return super().preprocess(picture)

    pictures = [(number, str(number), (4 + number, 4)) for number in range(3)]
    found = detect_pictures(Noting(), pictures, batch_size=1, readers=0, score_threshold=0.1)
    assert next(found).number == 0
    assert read == [((4, 4), threading.current_thread())]
    assert [one.number for one in found] == [1, 2]


@pytest.mark.parametrize("readers", [0, MOST_READERS])
def test_a_picture_that_cannot_be_used_is_named_and_the_others_are_found(readers):
    found, batches = detect([(10, 5), "torn", (10, 5)], 2, readers)
    assert batches == [[10, 10]]
    assert found[1] == Found(1, "1.jpg", problem="torn: cannot be decoded")


def test_an_error_of_the_source_is_passed_on():
    pictures = [(0, "a", ImageError("a is torn")), (1, "b", (4, 4))]
    found = list(detect_pictures(Counting(), pictures, batch_size=1, score_threshold=0.1))
    assert found[0].problem == "a is torn"
    assert found[1].problem == ""


class Slices:
    """Stands for a predictor: finds two boxes in every slice; its own defaults would leave out all of them."""

    def __init__(self, class_names, labels=(0, 0)):
        self.class_names, self.labels, self.calls = class_names, labels, []

    def read(self, picture):
        return np.zeros((40, 60, 3), np.uint8)

    def __call__(self, image, *, score_threshold=0.9, top_k=0, channel_order="BGR"):
        self.calls.append((score_threshold, top_k, channel_order))
        instances = Instances(image.shape[:2])
        instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 11.0, 12.0], [12.0, 2.0, 18.0, 12.0]]))
        instances.scores, instances.pred_classes = torch.tensor([0.8, 0.3]), torch.tensor(self.labels)
        return instances[instances.scores >= score_threshold][:top_k]


def detect_slices(predictor, **options):
    pytest.importorskip("sahi")
    (found,) = detect_in_slices(predictor, [(0, "a", "a")], 20, 0.0, **options)
    return found


def test_slices_are_merged_over_the_whole_picture():
    found = detect_slices(Slices(["cell"]), score_threshold=0.5, top_k=None)
    assert (found.width, found.height) == (60, 40)
    corners = sorted(tuple(box[:2]) for box in found.boxes)
    assert corners == [(x + 1.0, y + 2.0) for x in (0, 20, 40) for y in (0, 20)]


def test_slices_take_the_options_of_the_call_and_not_the_defaults_of_the_predictor():
    predictor = Slices(["cell"])
    found = detect_slices(predictor, score_threshold=0.2, top_k=7)
    assert found.scores == pytest.approx([0.8] * 6 + [0.3])  # of 12 in 6 slices, over the whole picture
    assert set(predictor.calls) == {(0.2, None, "RGB")}


@pytest.mark.parametrize("class_names", [[], ["cell"]])
def test_slices_find_classes_without_names(class_names):
    found = detect_slices(Slices(class_names, labels=(2, 1)), score_threshold=0.2, top_k=None)
    assert found.labels == [2] * 6 + [1] * 6
