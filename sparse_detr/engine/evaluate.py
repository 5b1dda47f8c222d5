"""Evaluation of a model on the data sets of a run."""

import logging
from typing import Any

from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from sparse_detr.config.run import Run
from sparse_detr.engine.distributed import unwrap

logger = logging.getLogger(__name__)


def evaluate(run: Run, model: nn.Module) -> dict[str, Any]:
    """Scores of `model` on every evaluation set: {"bbox": {"AP": ...}} for one, else a level of names above.

    All ranks share the images; the main process holds the scores, the others an empty dict.
    """
    results = {}
    for evaluation_set in run.evaluation_sets:
        scores = inference_on_dataset(unwrap(model), evaluation_set.build_loader(), evaluation_set.build_evaluator())
        if comm.is_main_process():
            logger.info(f"Evaluation of {evaluation_set.name}:")
            print_csv_format(scores)
        results[evaluation_set.name] = scores
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_with_average(run: Run, model: nn.Module, average: nn.Module | None) -> dict[str, Any]:
    """Scores of the model, and below "ema" those of the averaged weights, so that neither hides the other."""
    results = dict(evaluate(run, model))
    if average is not None:
        results |= {f"ema/{name}": scores for name, scores in evaluate(run, average).items()}
    return results
