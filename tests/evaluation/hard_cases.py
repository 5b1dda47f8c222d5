"""Truth and detections on which evaluators of COCO's scores can differ."""

import numpy as np


def make_case(
    seed: int,
    *,
    images: int = 12,
    classes: int = 4,
    boxes: int = 8,
    detections: int = 30,
    crowds: float = 0.1,
    ignored: float = 0.0,
    grid: bool = False,
    tied_scores: bool = False,
    first_id: int = 1,
):
    """Return the content of a COCO file and COCO results for it.

    A tenth of the images has no boxes and another tenth no detections, ids have gaps, some boxes have no width, and
    areas are not always width times height, as where they are those of masks.

    Args:
        boxes, detections: the most of an image.
        crowds, ignored: shares of boxes with `iscrowd` and with `ignore`.
        grid: whether coordinates are multiples of 8, so that overlaps are tied and lie on COCO's thresholds.
        tied_scores: whether scores have one decimal only.
        first_id: id of the first annotation.
    """
    generator = np.random.default_rng(seed)
    image_ids = sorted(generator.choice(10**6, images, replace=False).tolist())
    class_ids = sorted(generator.choice(10**4, classes, replace=False).tolist())
    annotations, results, number = [], [], first_id
    for image in image_ids:
        mine = []
        for _ in range(0 if generator.random() < 0.1 else generator.integers(boxes + 1)):
            box = _random_box(generator, grid)
            if generator.random() < 0.05:
                box[2] = 0
            area = float(box[2] * box[3] * generator.choice([1, 0.6]))
            mine.append(
                {
                    "id": number,
                    "image_id": image,
                    "category_id": class_ids[generator.integers(classes)],
                    "bbox": box.tolist(),
                    "area": area,
                    "iscrowd": int(generator.random() < crowds),
                    **({"ignore": 1} if generator.random() < ignored else {}),
                }
            )
            number += int(generator.integers(1, 5))
        annotations += mine
        for _ in range(0 if generator.random() < 0.1 else generator.integers(detections + 1)):
            box, category = _random_box(generator, grid), class_ids[generator.integers(classes)]
            if mine and generator.random() < 0.7:
                near = mine[generator.integers(len(mine))]
                box = _moved(generator, np.array(near["bbox"]), grid)
                category = near["category_id"] if generator.random() < 0.8 else category
            score = float(np.float32(generator.random()))
            results.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": np.float32(box).tolist(),
                    "score": round(score, 1) if tied_scores else score,
                }
            )
    generator.shuffle(results)
    truth = {
        "images": [{"id": image, "width": 640, "height": 480, "file_name": f"{image}.jpg"} for image in image_ids],
        "annotations": annotations,
        "categories": [{"id": number, "name": f"class {number}"} for number in class_ids],
        "info": {},
    }
    return truth, results


def _random_box(generator, grid):
    box = generator.random(4) * np.array([400, 300, 240, 180])
    return np.round(box / 8) * 8 if grid else box


def _moved(generator, box, grid):
    if grid and generator.random() < 0.5:
        return box
    moved = box + generator.normal(size=4) * np.maximum(box[[2, 3, 2, 3]], 1) * 0.15
    moved[2:] = np.maximum(moved[2:], 0)
    return np.round(moved / 8) * 8 if grid else moved
