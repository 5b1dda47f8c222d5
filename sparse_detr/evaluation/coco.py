"""COCO's scores of boxes: Detectron2's evaluator, with hotcoco in the place of pycocotools.

The scores equal those of pycocotools to the last digit, see `docs/evaluation.md`. Where hotcoco cannot be used,
Detectron2's own way runs, and the log says so.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2 import evaluation
from detectron2.utils.file_io import PathManager

from sparse_detr.errors import UserError
from sparse_detr.evaluation.truth import note_truth
from sparse_detr.files import write_text_atomically

logger = logging.getLogger(__name__)

# pycocotools reads no other fields of the truth for the scores of boxes.
ANNOTATION_FIELDS = ("id", "image_id", "category_id", "bbox", "area")
AREAS = ("all", "small", "medium", "large")
# What COCO's twelve scores are: kind, IoU or None for the mean over all, area, place in `max_detections`.
SCORES = (
    ("precision", None, "all", 2),
    ("precision", 0.5, "all", 2),
    ("precision", 0.75, "all", 2),
    ("precision", None, "small", 2),
    ("precision", None, "medium", 2),
    ("precision", None, "large", 2),
    ("recall", None, "all", 0),
    ("recall", None, "all", 1),
    ("recall", None, "all", 2),
    ("recall", None, "small", 2),
    ("recall", None, "medium", 2),
    ("recall", None, "large", 2),
)


class COCOEvaluator(evaluation.COCOEvaluator):
    """Detectron2's evaluator with its arguments, results and files; the scores of boxes are computed by hotcoco.

    Beside the detections it writes which true boxes they belong to, see `truth.note_truth`.
    Masks, keypoints and proposals are left to Detectron2.
    """

    def _eval_predictions(self, predictions: list[dict[str, Any]], img_ids: list[int] | None = None) -> None:
        if self._output_dir:  # first, so that old detections are refused if what follows is interrupted
            note_truth(self._output_dir, self._metadata.name, PathManager.get_local_path(self._metadata.json_file))
        detections = list(itertools.chain.from_iterable(prediction["instances"] for prediction in predictions))
        problem = self._why_not_hotcoco(detections)
        if problem is not None:
            logger.info(f"Detectron2 computes COCO's scores, which takes longer: {problem}")
            super()._eval_predictions(predictions, img_ids)
            return
        self._use_category_ids_of_data_set(detections)
        self._save(detections)
        if not self._do_evaluation:
            logger.info("the data set has no annotations; the detections are saved, not scored")
            return
        scores = None
        if detections:
            scores = score_boxes(self._coco_api.dataset, detections, self._max_dets_per_image, img_ids)
            logger.info("COCO's scores:\n" + scores.table())
        self._results["bbox"] = self._derive_coco_results(scores, "bbox", self._metadata.get("thing_classes"))

    def _why_not_hotcoco(self, detections: list[dict[str, Any]]) -> str | None:
        """Return why hotcoco cannot compute the scores that are asked for; None if it can."""
        others = set(self._tasks or self._tasks_from_predictions(detections)) - {"bbox"}
        if others:
            return f"hotcoco is used for boxes only, not for {', '.join(sorted(others))}"
        return why_not_hotcoco(self._coco_api.dataset)

    def _use_category_ids_of_data_set(self, detections: list[dict[str, Any]]) -> None:
        contiguous = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if contiguous is None:
            return
        ids = {index: category for category, index in contiguous.items()}
        for detection in detections:
            if detection["category_id"] not in ids:
                raise UserError(
                    f"a detection has class {detection['category_id']}, but the data set has {len(ids)} classes; set "
                    "the model's num_classes to that"
                )
            detection["category_id"] = ids[detection["category_id"]]

    def _save(self, detections: list[dict[str, Any]]) -> None:
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            write_text_atomically(path, json.dumps(detections))
            logger.info(f"detections saved to {path}")


@dataclass(frozen=True)
class BoxScores:
    """COCO's scores of boxes, with the names that pycocotools' `COCOeval` has.

    Args:
        stats: the twelve scores in [0, 1] in COCO's order; -1 where there is nothing to score.
        eval: `precision` (IoU thresholds, recalls, classes, areas, limits of detections), `recall` without recalls.
        max_detections: the three limits of detections of a class in an image.
    """

    stats: np.ndarray
    eval: dict[str, np.ndarray]
    max_detections: list[int]

    def table(self) -> str:
        """Return the twelve scores as text, one a line."""
        lines = []
        for value, (kind, iou, area, limit) in zip(self.stats, SCORES, strict=True):
            span = "0.50:0.95" if iou is None else f"{iou:.2f}"
            limits = f"at most {self.max_detections[limit]} detections"
            lines.append(f"average {kind:<9} IoU {span:<9} {area:<6} {limits:<23} {value:.3f}")
        return "\n".join(lines)


def score_boxes(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    max_detections: list[int],
    image_ids: list[int] | None = None,
) -> BoxScores:
    """Return COCO's scores of boxes.

    Args:
        truth: content of a COCO file. Ids are whole numbers of 0 or more; those of annotations are not 0.
        detections: at least one COCO result: `image_id`, `category_id`, `bbox` as x, y, width, height, `score`.
        max_detections: how many detections of a class in an image count: three limits, the last one for the precision.
        image_ids: images that count; all if None.
    """
    return scores_of(evaluate_boxes(truth, detections, max_detections, image_ids))


def evaluate_boxes(
    truth: dict[str, Any],
    detections: list[dict[str, Any]],
    max_detections: list[int],
    image_ids: list[int] | None = None,
    *,
    iou_thresholds: list[float] | None = None,
) -> Any:
    """Return hotcoco's `COCOeval` of boxes with all matches.

    Args:
        truth, detections, max_detections, image_ids: as of `score_boxes`.
        iou_thresholds: IoUs of a match; COCO's ten if None.
    """
    import hotcoco

    ground_truth = hotcoco.COCO(boxes_only(truth))
    evaluated = hotcoco.COCOeval(ground_truth, ground_truth.load_res(detections), "bbox")
    evaluated.params.max_dets = max_detections
    if image_ids is not None:
        evaluated.params.img_ids = image_ids
    if iou_thresholds is not None:
        evaluated.params.iou_thrs = iou_thresholds
    evaluated.evaluate()
    return evaluated


def scores_of(evaluated: Any) -> BoxScores:
    """Return COCO's scores of what `evaluate_boxes` returned."""
    evaluated.accumulate()
    arrays = {kind: np.asarray(evaluated.eval[kind]) for kind in ("precision", "recall")}
    thresholds = np.asarray(evaluated.params.iou_thrs)
    limits = list(evaluated.params.max_dets)
    return BoxScores(np.array([_mean(arrays, thresholds, *score) for score in SCORES]), arrays, limits)


def boxes_only(truth: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of a COCO file that scores of boxes depend on; others may hold what hotcoco does not read."""
    annotations = [
        {**{key: annotation[key] for key in ANNOTATION_FIELDS}, "iscrowd": int(bool(annotation.get("iscrowd", 0)))}
        for annotation in truth["annotations"]
    ]
    categories = [{"id": category["id"], "name": str(category.get("name", ""))} for category in truth["categories"]]
    images = [{"id": image["id"]} for image in truth["images"]]
    return {"images": images, "categories": categories, "annotations": annotations}


def _mean(
    arrays: dict[str, np.ndarray], thresholds: np.ndarray, kind: str, iou: float | None, area: str, limit: int
) -> float:
    """Return the mean of the entries that exist, added up in pycocotools' order; -1 if there is none."""
    values = arrays[kind][..., AREAS.index(area), limit]
    if iou is not None:
        values = values[thresholds == iou]
    values = values[values > -1]
    return float(np.mean(values)) if values.size else -1.0


def why_not_hotcoco(truth: dict[str, Any]) -> str | None:
    """Return why hotcoco cannot score the content of a COCO file as pycocotools does; None if it can."""
    return _why_not_scored_alike(truth) or _why_not_importable()


def _why_not_scored_alike(truth: dict[str, Any]) -> str | None:
    """Return what in a COCO file hotcoco refuses or scores otherwise than pycocotools; None if there is nothing."""
    odd = next((image["id"] for image in truth["images"] if not isinstance(image["id"], int)), None)
    if odd is not None:
        return f"hotcoco needs whole numbers as ids of images, got {odd!r}"
    for part in ("images", "categories", "annotations"):
        lowest = min((item["id"] for item in truth.get(part, [])), default=0)
        if lowest < 0:
            return f"hotcoco needs ids of 0 or more, but {part} have the id {lowest}; number them from 1"
    if any(annotation["id"] == 0 for annotation in truth.get("annotations", [])):
        return "an annotation has the id 0, whose matches pycocotools does not count, but hotcoco does"
    return None


def _why_not_importable() -> str | None:
    try:
        import hotcoco  # noqa: F401
    except ImportError as error:  # also where there is no wheel for this machine
        return f"hotcoco cannot be imported ({error}); install it: pip install hotcoco"
    return None
