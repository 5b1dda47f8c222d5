"""An object keeps its number through the frames; numbers by hand."""

import cv2
import numpy as np

from sparse_detr.predict.job import Found
from sparse_detr.predict.sources import VideoFrames
from sparse_detr.predict.video import Tracker, track_video, write_video


def frame(*objects, number=0):
    """Return a frame with (label, left) objects: boxes of 20 x 20 pixels."""
    boxes = [[left, 10.0, left + 20.0, 30.0] for _, left in objects]
    return Found(number, "f", 100, 50, boxes, [0.9] * len(boxes), [label for label, _ in objects])


def test_a_box_that_moves_a_little_keeps_its_number_and_a_new_one_gets_the_next():
    tracker = Tracker(50, 100)
    assert tracker.update(frame((0, 0), (0, 60))) == [1, 2]
    assert tracker.update(frame((0, 63), (0, 3))) == [2, 1]
    assert tracker.update(frame((0, 6), (0, 30), (0, 66))) == [1, 3, 2]


def test_a_box_of_another_class_is_another_object():
    tracker = Tracker(50, 100)
    assert tracker.update(frame((0, 0))) == [1]
    assert tracker.update(frame((1, 0))) == [2]


def test_an_object_that_is_missed_for_some_frames_keeps_its_number_and_for_many_does_not():
    for missed, number in ((5, 1), (7, 2)):
        frames = [frame((0, 0)), frame((0, 1)), *[frame()] * missed, frame((0, 2))]
        assert track_video(frames)[-1] == [number]


def test_frames_that_cannot_be_used_have_no_numbers():
    bad = Found(0, "f", problem="torn")
    seen = frame((0, 0))
    assert track_video([bad, seen, seen, bad, seen]) == [[], [1], [1], [], [1]]
    assert track_video([bad]) == [[]]


def test_the_written_video_has_all_frames_with_their_boxes(tmp_path):
    source = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (128, 64))
    for _ in range(3):
        source.write(np.full((64, 128, 3), 128, np.uint8))
    source.release()
    video = VideoFrames(str(tmp_path / "in.mp4"))
    frames = [Found(i, "f", 128, 64, [[30.0, 10.0, 90.0, 50.0]], [1.0], [0]) for i in range(3)]
    path = tmp_path / "out" / "in.mp4"
    write_video(path, video, frames, ["cell"], caption="", tracks=[[1], [1], [1]])
    drawn = VideoFrames(str(path))
    pictures = list(drawn.read(0, 3))
    assert len(drawn.names) == len(pictures) == 3
    assert drawn.frames_per_second == 10
    height, width = pictures[0].shape[:2]
    assert width == 1280
    edge = pictures[0][300, round(30 / 128 * width)].astype(int)
    inside = pictures[0][300, round(60 / 128 * width)].astype(int)
    assert abs(edge - inside).max() > 40
    assert [path.name for path in path.parent.iterdir()] == ["in.mp4"]
