"""Detection in slices of a large image, whose detections SAHI merges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparse_detr.errors import UserError

if TYPE_CHECKING:
    from sparse_detr.predictor import Predictor

HOW_TO_INSTALL = "pip install --no-deps sahi shapely"


@dataclass(frozen=True)
class Merged:
    """Detections of a whole image.

    Args:
        boxes: x0, y0, x1, y1 in pixels.
        scores: best first.
        labels: class indices.
    """

    boxes: Sequence[Sequence[float]]
    scores: Sequence[float]
    labels: Sequence[int]


def by_slices(
    predictor: Predictor, side: int, overlap: float, *, score_threshold: float = 0.0, **options: Any
) -> Callable[[np.ndarray], Merged]:
    """Return a function that detects in slices of an image (H, W, 3) uint8 RGB, and merges what overlaps.

    Of detections of one class whose IoU is above 0.5, the best one stays (non-maximum suppression).

    Args:
        predictor: the detector; it resizes every slice as the evaluation's config says.
        side: of a slice, in pixels of the image.
        overlap: share of a slice that the next one shares with it, at least 0 and below 1.
        score_threshold: detections with a lower score are left out.
        options: as in a call of the predictor; without `top_k`, a slice has as many detections as the model gives.

    Raises:
        UserError: SAHI is missing.
    """
    model = sahi_model(predictor, score_threshold=score_threshold, **options)

    def detect(image: np.ndarray) -> Merged:
        from sahi.predict import get_sliced_prediction

        found = get_sliced_prediction(
            image,
            model,
            slice_height=side,
            slice_width=side,
            overlap_height_ratio=overlap,
            overlap_width_ratio=overlap,
            perform_standard_pred=False,
            postprocess_type="NMS",
            postprocess_match_metric="IOU",
            verbose=0,
        )
        best = sorted(found.object_prediction_list, key=lambda one: -one.score.value)
        return Merged(
            boxes=[list(map(float, one.bbox.to_xyxy())) for one in best],
            scores=[float(one.score.value) for one in best],
            labels=[int(one.category.id) for one in best],
        )

    return detect


def sahi_model(predictor: Predictor, *, score_threshold: float = 0.0, **options: Any) -> Any:
    """Return a predictor as SAHI takes detectors.

    Args:
        predictor: the detector.
        score_threshold: detections with a lower score are left out.
        options: as in a call of the predictor; without `top_k`, a slice has as many detections as the model gives.

    Raises:
        UserError: SAHI is missing.
    """
    try:
        from sahi.models.base import DetectionModel
        from sahi.prediction import ObjectPrediction
    except ImportError as error:
        raise UserError(f"slices need SAHI, which cannot be imported ({error}); {HOW_TO_INSTALL}") from error

    # the predictor's own defaults are of a whole image in its own channel order
    options = {"top_k": None, **options, "score_threshold": score_threshold, "channel_order": "RGB"}

    class SlicedDetector(DetectionModel):
        """A `Predictor` behind SAHI's interface."""

        def set_model(self, model: Any, **kwargs: Any) -> None:
            self.model = model
            self.category_mapping = {str(label): name for label, name in enumerate(model.class_names)}

        def perform_inference(self, image: np.ndarray) -> None:
            self._original_predictions = self.model(np.ascontiguousarray(image), **options)

        @property
        def num_categories(self) -> int:
            return len(self.category_mapping)

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            shift = shift_amount_list or [0, 0]
            shape = full_shape_list
            shift = shift[0] if isinstance(shift[0], list | tuple) else shift
            shape = shape[0] if shape and isinstance(shape[0], list | tuple) else shape
            found = self._original_predictions
            rows = zip(
                found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist(), strict=True
            )
            self._object_prediction_list_per_image = [
                [
                    ObjectPrediction(
                        bbox=box,
                        category_id=label,
                        category_name=self.category_mapping.get(str(label), str(label)),
                        shift_amount=list(shift),
                        score=score,
                        full_shape=None if shape is None else list(shape),
                    )
                    for box, score, label in rows
                    if score >= self.confidence_threshold
                ]
            ]

    return SlicedDetector(model=predictor, device="cpu", confidence_threshold=score_threshold)
