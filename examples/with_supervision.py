"""Draw detections with supervision, and count them by class.

    pip install supervision
    python examples/with_supervision.py detector street.jpg out.jpg

`detector` is a folder of `sparse-detr pack`.
"""

import sys
from collections import Counter

import numpy as np
import supervision as sv
from PIL import Image

from sparse_detr import Predictor


def main(detector: str, image: str, output: str) -> Counter[str]:
    """Write the picture; return the number of detections of every class."""
    predictor = Predictor(detector, score_threshold=0.3)
    picture = predictor.read(image)  # upright, RGB
    found = sv.Detections.from_detectron2({"instances": predictor(picture)})
    names = [predictor.class_names[label] for label in found.class_id]
    labels = [f"{name} {score:.0%}" for name, score in zip(names, found.confidence, strict=True)]
    drawn = sv.BoxAnnotator().annotate(np.ascontiguousarray(picture[:, :, ::-1]), found)  # supervision draws BGR
    drawn = sv.LabelAnnotator().annotate(drawn, found, labels)
    Image.fromarray(drawn[:, :, ::-1]).save(output)
    return Counter(names)


if __name__ == "__main__":
    print(dict(main(*sys.argv[1:])))
