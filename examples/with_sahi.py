"""Detect in slices of a large picture with SAHI, and write what it merges as COCO results.

    pip install --no-deps sahi shapely
    python examples/with_sahi.py detector scene.png found.json

`detector` is a folder of `sparse-detr pack`. `sparse-detr predict --slice 384` does the same for many pictures.
"""

import json
import sys
from pathlib import Path

from sahi.predict import get_sliced_prediction

from sparse_detr import Predictor
from sparse_detr.predict.slicing import sahi_model


def main(detector: str, image: str, output: str, side: int = 384) -> int:
    """Write the detections; return their number."""
    predictor = Predictor(detector)
    found = get_sliced_prediction(
        predictor.read(image),
        sahi_model(predictor, score_threshold=0.3),
        slice_height=side,
        slice_width=side,
        overlap_height_ratio=0.2,
        overlap_width_ratio=0.2,
        perform_standard_pred=False,
        verbose=0,
    )
    Path(output).write_text(json.dumps(found.to_coco_predictions(image_id=1)))
    return len(found.object_prediction_list)


if __name__ == "__main__":
    print(f"{main(*sys.argv[1:])} objects")
