"""True boxes and detections whose scores are solved by hand.

Cats and dogs have boxes, hens have none. Of the cats' detections, from the best: right, a duplicate of it, one on a
dog, right, right, one in an empty image. The only dog detection lies on a crowd of dogs, so it does not count.
"""

CAT, DOG, HEN = 1, 5, 7
SIDE = [10, 10]
BOXES = [  # id, image, category, box, crowd
    (1, 1, CAT, [0, 0, *SIDE], 0),
    (2, 1, DOG, [20, 0, *SIDE], 0),
    (3, 2, CAT, [0, 0, *SIDE], 0),
    (5, 2, CAT, [40, 0, *SIDE], 0),
    (4, 3, DOG, [0, 0, 50, 50], 1),
]
DETECTIONS = [  # image, category, box, score
    (1, CAT, [0, 0, *SIDE], 0.9),
    (1, CAT, [0, 0, 10, 9.5], 0.8),
    (1, CAT, [20, 0, *SIDE], 0.7),
    (2, CAT, [0, 0, *SIDE], 0.65),
    (2, CAT, [40, 0, *SIDE], 0.6),
    (3, DOG, [10, 10, *SIDE], 0.5),
    (2, HEN, [30, 30, 5, 5], 0.4),
    (3, CAT, [0, 0, *SIDE], 0.2),
]


def make_truth():
    """Return the content of a COCO file."""
    keys = ("id", "image_id", "category_id", "bbox", "iscrowd")
    boxes = [dict(zip(keys, row, strict=True)) for row in BOXES]
    return {
        "images": [{"id": n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in (1, 2, 3)],
        "annotations": [{**box, "area": box["bbox"][2] * box["bbox"][3]} for box in boxes],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog </script>"}, {"id": HEN, "name": "hen"}],
    }


def make_results():
    """Return COCO results."""
    return [dict(zip(("image_id", "category_id", "bbox", "score"), row, strict=True)) for row in DETECTIONS]
