"""Evaluate a model on the data sets of a run."""

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from sparse_detr.config.num_classes import check_num_classes
from sparse_detr.config.run import Run
from sparse_detr.engine.distributed import without_ddp
from sparse_detr.engine.validation import GROUP as VALIDATION
from sparse_detr.engine.validation import validation_losses

logger = logging.getLogger(__name__)

AVERAGE_PREFIX = "ema/"


class WithBudget(nn.Module):
    """A detector whose every call has the same budget; for Detectron2's evaluation.

    Args:
        model: the detector.
        budget: as in a call of it.
    """

    def __init__(self, model: nn.Module, budget: Any) -> None:
        super().__init__()
        self.model, self.budget = model, budget
        self.num_classes = getattr(model, "num_classes", None)
        self.class_channels = getattr(model, "class_channels", None)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Return the detections of a batch."""
        return self.model(batched_inputs, budget=self.budget)


class _FirstBatches:
    """The first batches of a loader; notes the images in them."""

    def __init__(self, loader: Any, number: int) -> None:
        self._loader, self._number = loader, number
        self.image_ids: list[Any] = []

    def __len__(self) -> int:
        return min(self._number, len(self._loader))

    def __iter__(self) -> Iterator[Any]:
        for batch in islice(self._loader, self._number):
            self.image_ids += [image["image_id"] for image in batch]
            yield batch


class _OnImages:
    """An evaluator that scores only the images that a loader gave."""

    def __init__(self, evaluator: Any, loader: _FirstBatches) -> None:
        self._evaluator, self._loader = evaluator, loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluator, name)

    def evaluate(self) -> Any:
        return self._evaluator.evaluate(img_ids=self._loader.image_ids)


def evaluate(
    run: Run,
    model: nn.Module,
    before_image: Callable[[], None] | None = None,
    max_images: int | None = None,
    *,
    keep_detections: bool = False,
) -> dict[str, Any]:
    """Return the scores of `model`: {"bbox": {"AP": ...}} for one evaluation set, {name: {"bbox": ...}} for several.

    The ranks share the images; the main process gets the scores, the others get empty dicts.

    Args:
        before_image: called before each batch.
        max_images: evaluate on so many batches of every set, which are single images by default; None for all.
        keep_detections: write the detections into the folder of the run, in place of those of its last evaluation.
    """
    model = without_ddp(model)
    callbacks = {"before_inference": before_image} if before_image else None
    results = {}
    for evaluation_set in run.evaluation_sets:
        loader = evaluation_set.build_loader()
        check_num_classes(model, evaluation_set.names)
        evaluator = evaluation_set.build_evaluator()
        if not keep_detections:
            _write_nothing(evaluator)
        if max_images is not None:
            loader = _FirstBatches(loader, max_images)
            evaluator = _OnImages(evaluator, loader)
        scores = inference_on_dataset(model, loader, evaluator, callbacks)
        name = ", ".join(evaluation_set.names)
        if comm.is_main_process():
            logger.info(f"evaluation of {name}:")
            print_csv_format(scores)
        results[name] = scores
    return next(iter(results.values())) if len(results) == 1 else results


def _write_nothing(evaluator: Any) -> None:
    """Keep Detectron2's evaluators from writing files; several are a list or a `DatasetEvaluators`."""
    parts = evaluator if isinstance(evaluator, list) else getattr(evaluator, "_evaluators", [evaluator])
    for part in parts:
        if hasattr(part, "_output_dir"):
            part._output_dir = None


def box_scores(run: Run, model: nn.Module, **options: Any) -> dict[str, float]:
    """Return the scores of boxes, such as `AP`, of the first evaluation set that has any; {} for none.

    Args:
        run: with the evaluation sets.
        model: the detector.
        options: of `evaluate`.
    """
    scores = evaluate(run, model, **options)
    boxes = scores.get("bbox") or next((score["bbox"] for score in scores.values() if "bbox" in score), {})
    return {name: float(value) for name, value in boxes.items()}


def evaluate_with_average(
    run: Run, model: nn.Module, average: nn.Module | None, before_image: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Return the scores of the model and, under names that start with "ema/", those of the averaged weights.

    The detections are kept in the folder of the run, those of the averaged weights where there are any.
    With `validation_loss` the losses are among them, under "validation".
    """
    results = _scores_and_losses(run, model, before_image)
    if average is not None:
        of_average = _scores_and_losses(run, average, before_image)
        results |= {f"{AVERAGE_PREFIX}{name}": scores for name, scores in of_average.items()}
    return results


def _scores_and_losses(run: Run, model: nn.Module, before_image: Callable[[], None] | None) -> dict[str, Any]:
    scores = dict(evaluate(run, model, before_image, keep_detections=True))
    if run.settings.validation_loss and hasattr(model, "losses"):
        scores |= {VALIDATION: losses} if (losses := validation_losses(run, model, before_image)) else {}
    return scores
