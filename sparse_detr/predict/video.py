"""Videos: the same object under the same number in every frame, and the frames with their detections as a video."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparse_detr.errors import ImageError, UserError
from sparse_detr.files import make_folder
from sparse_detr.predict.formats import list_found
from sparse_detr.predict.job import Found
from sparse_detr.predict.sources import VideoFrames
from sparse_detr.visualization.detections import Detection, TrackedDetection, draw_detections

LOST_FRAMES = 5
"""A track that is not found in more frames in a row ends."""


class Tracker:
    """Numbers objects through the frames of a video, with Detectron2's `BBoxIOUTracker`, one a class.

    An object is the same as in the frame before if their boxes overlap most, with an IoU of at least 0.5. An object
    that is missed keeps its number for `LOST_FRAMES` frames if it was found in more than one.

    Args:
        height, width: of the frames, in pixels.
    """

    def __init__(self, height: int, width: int) -> None:
        self.size = (height, width)
        self._trackers: dict[int, Any] = {}
        self._numbers: dict[tuple[int, int], int] = {}

    def update(self, found: Found) -> list[int]:
        """Return the number of every detection of the next frame, from 1."""
        labels = sorted({*found.labels, *self._trackers})
        numbers = [0] * len(found.labels)
        for label in labels:
            rows = [row for row, other in enumerate(found.labels) if other == label]
            for row, identity in zip(rows, self._update_class(label, [found.boxes[row] for row in rows]), strict=True):
                numbers[row] = self._numbers.setdefault((label, identity), len(self._numbers) + 1)
        return numbers

    def _update_class(self, label: int, boxes: Sequence[Sequence[float]]) -> list[int]:
        import torch
        from detectron2.structures import Boxes, Instances
        from detectron2.tracking.bbox_iou_tracker import BBoxIOUTracker

        if label not in self._trackers:
            height, width = self.size
            self._trackers[label] = BBoxIOUTracker(
                video_height=height,
                video_width=width,
                max_lost_frame_count=LOST_FRAMES,
                min_box_rel_dim=0.0,
                min_instance_period=1,
                track_iou_threshold=0.5,
            )
        instances = Instances(self.size)
        instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4))
        instances.pred_classes = torch.full((len(boxes),), label)
        instances.scores = torch.ones(len(boxes))
        tracked = self._trackers[label].update(instances)
        return tracked.ID[: len(boxes)]  # after them come the lost ones


def track_video(frames: Sequence[Found]) -> list[list[int]]:
    """Return the number of every detection of every frame."""
    first = next((found for found in frames if not found.problem), None)
    if first is None:
        return [[] for _ in frames]
    tracker = Tracker(first.height, first.width)
    return [tracker.update(found) for found in frames]


def write_video(
    path: Path,
    video: VideoFrames,
    frames: Sequence[Found],
    class_names: Sequence[str],
    *,
    caption: str,
    tracks: Sequence[Sequence[int]] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> None:
    """Write a video of the frames with their detections, in MPEG-4; it appears when it is whole.

    Args:
        path: of the file, `.mp4`.
        video: the frames.
        frames: what was found in them.
        class_names: by class index.
        caption: stands below every frame.
        tracks: number of every detection, written into its label.
        progress: called after every frame.

    Raises:
        UserError: the file cannot be written.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    writer = None
    try:
        for image, found, numbers in zip(
            video.read(0, len(frames)), frames, tracks or [None] * len(frames), strict=True
        ):
            if isinstance(image, ImageError):
                continue
            drawn = even(draw_detections(image, labelled(found, class_names, numbers), caption=caption))
            if writer is None:
                writer = open_writer(temporary, drawn, video.frames_per_second)
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
            progress()
    finally:
        if writer is not None:
            writer.release()
    if writer is not None:
        os.replace(temporary, path)


def labelled(found: Found, class_names: Sequence[str], numbers: Sequence[int] | None) -> list[Detection]:
    """Return the detections of a frame as they are drawn, with the numbers of their tracks."""
    detections = list_found(found, class_names)
    if numbers is None:
        return detections
    return [
        TrackedDetection(**vars(detection), number=number)
        for detection, number in zip(detections, numbers, strict=True)
    ]


def open_writer(path: Path, frame: np.ndarray, frames_per_second: float) -> Any:
    """Return OpenCV's writer for frames like this one."""
    import cv2

    height, width = frame.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), frames_per_second, (width, height))
    if not writer.isOpened():
        raise UserError(f"{path} cannot be written as a video; leave the format pictures out, or mend the folder")
    return writer


def even(frame: np.ndarray) -> np.ndarray:
    """Return a frame without its last row or column where their number is odd, which codecs refuse."""
    height, width = frame.shape[:2]
    return frame[: height - height % 2, : width - width % 2]
