"""Score detections."""

from sparse_detr.evaluation.coco import COCOEvaluator

__all__ = ["COCOEvaluator"]
