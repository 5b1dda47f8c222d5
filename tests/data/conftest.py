"""Small data sets on disk."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image


def make_record(folder, image_id, *, width=40, height=30, boxes=((5.0, 5.0, 10.0, 8.0),)):
    """A record in Detectron2's format with a PNG of random pixels; boxes as x, y, width, height of class 0."""
    path = folder / f"{image_id}.png"
    pixels = np.random.RandomState(image_id).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    annotations = [{"bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0} for box in boxes]
    return {
        "file_name": str(path),
        "image_id": image_id,
        "width": width,
        "height": height,
        "annotations": annotations,
    }


@pytest.fixture
def records(tmp_path):
    """Seven wide and five tall images."""
    sizes = [(40, 30)] * 7 + [(30, 40)] * 5
    return [make_record(tmp_path, number, width=w, height=h) for number, (w, h) in enumerate(sizes)]
