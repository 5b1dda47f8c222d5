"""A page on which a picture is dropped and its detections are shown, with a slider for the tokens.

    pip install gradio
    python examples/gradio_page.py detector

`detector` is a folder of `sparse-detr pack`.
"""

import sys

import gradio
import numpy as np

from sparse_detr import Predictor
from sparse_detr.visualization import draw_detections, list_detections


def make_page(detector: str) -> gradio.Blocks:
    """Return the page."""
    predictor = Predictor(detector)

    def detect(image: np.ndarray, score: float, share: float) -> np.ndarray:
        budget = {} if predictor.is_dense else {"budget": share}
        found = predictor(image, score_threshold=score, **budget)
        return draw_detections(image, list_detections(found, predictor.class_names))

    with gradio.Blocks(title="Detections") as page:
        image = gradio.Image(label="picture")
        score = gradio.Slider(0, 1, 0.3, label="lowest score")
        share = gradio.Slider(0.05, 1, 0.3, label="share of the tokens that the encoder refines")
        gradio.Button("Detect").click(detect, [image, score, share], gradio.Image(label="found"))
    return page


if __name__ == "__main__":
    make_page(sys.argv[1]).launch()
