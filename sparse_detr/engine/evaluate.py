"""Evaluate a model on the data sets of a run."""

import logging
from collections.abc import Callable
from typing import Any

from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from sparse_detr.config.num_classes import check_num_classes
from sparse_detr.config.run import Run
from sparse_detr.engine.distributed import without_ddp

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


def evaluate(run: Run, model: nn.Module, before_image: Callable[[], None] | None = None) -> dict[str, Any]:
    """Return the scores of `model`: {"bbox": {"AP": ...}} for one evaluation set, {name: {"bbox": ...}} for several.

    The ranks share the images; the main process gets the scores, the others get empty dicts.

    Args:
        before_image: called before each batch.
    """
    model = without_ddp(model)
    callbacks = {"before_inference": before_image} if before_image else None
    results = {}
    for evaluation_set in run.evaluation_sets:
        loader = evaluation_set.build_loader()
        check_num_classes(model, evaluation_set.names)
        scores = inference_on_dataset(model, loader, evaluation_set.build_evaluator(), callbacks)
        name = ", ".join(evaluation_set.names)
        if comm.is_main_process():
            logger.info(f"evaluation of {name}:")
            print_csv_format(scores)
        results[name] = scores
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_with_average(
    run: Run, model: nn.Module, average: nn.Module | None, before_image: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Return the scores of the model and, under names that start with "ema/", those of the averaged weights."""
    results = dict(evaluate(run, model, before_image))
    if average is not None:
        results |= {f"{AVERAGE_PREFIX}{name}": scores for name, scores in evaluate(run, average, before_image).items()}
    return results
