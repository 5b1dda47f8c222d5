"""Small data sets on disk."""

import json
import zlib

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

# Values of fields that a box detector never reads, on which Detectron2's or pycocotools' readers stumble.
NEVER_READ = [
    *(("segmentation", value) for value in ([[0, 0, 5, 0, 5, 5]], {"counts": "abc", "size": [1, 1]}, [], None)),
    *(
        ("segmentation", value)
        for value in ([[2, 3, 12, 11]], [[]], [2, 3, 12, 3, 12, 11], {"size": [30, 40]}, "abc", 7)
    ),
    *(("segmentation", value) for value in ({"counts": [10**12], "size": [30, 40]}, {"counts": ["a"], "size": 5})),
    *(("keypoints", value) for value in (["1", "2", "2"], None, 5, [[1]], {"a": 1})),
    *(("ignore", value) for value in (None, 0, False, "0")),
    *(("score", value) for value in (None, "high")),
    *(("area", value) for value in (None, "80", [], -5, float("nan"), 10**400)),
    *(("num_keypoints", "x"), ("caption", {"a": None}), ("attributes", [1])),
]


def make_record(folder, image_id, *, width=40, height=30, boxes=((5.0, 5.0, 10.0, 8.0),)):
    """Return a record in Detectron2's format with a PNG of random pixels; boxes are x, y, width, height of class 0."""
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
    """Return the records of seven wide and five tall images."""
    sizes = [(40, 30)] * 7 + [(30, 40)] * 5
    return [make_record(tmp_path, number, width=w, height=h) for number, (w, h) in enumerate(sizes)]


def coco_content(*, num_images=3, num_categories=2):
    """Return the content of a COCO file without faults, with one box an image."""
    return {
        "images": [
            {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30}
            for number in range(1, num_images + 1)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": 1 + (number - 1) % num_categories,
                "bbox": [2.0, 3.0, 10.0, 8.0],
                "area": 80.0,
                "iscrowd": 0,
            }
            for number in range(1, num_images + 1)
        ],
        "categories": [{"id": number, "name": f"class {number}"} for number in range(1, num_categories + 1)],
    }


def write_coco(folder, content, name="annotations.json"):
    """Write the JSON and, beside it, a random PNG for every image without a file."""
    path = folder / name
    path.write_text(json.dumps(content))
    for image in content["images"]:
        file = folder / image["file_name"]
        if not file.exists():
            pixels = np.random.RandomState(zlib.crc32(image["file_name"].encode(errors="surrogatepass"))).randint(
                0, 256, (image["height"], image["width"], 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(file)
    return path
