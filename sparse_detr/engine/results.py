"""Log the results of a training or evaluation."""

import logging
import os
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from tabulate import tabulate

from sparse_detr.config.run import TrainSettings
from sparse_detr.engine.evaluate import AVERAGE_PREFIX
from sparse_detr.engine.validation import GROUP as VALIDATION

logger = logging.getLogger(__name__)


def report_results(scores: dict[str, Any], settings: TrainSettings, *, trained: bool) -> None:
    """Log the table of scores and the paths of the outputs, on the main process."""
    if not comm.is_main_process():
        return
    if scores:
        logger.info("results:\n" + score_table(scores))
    logger.info("outputs:\n" + "\n".join(output_lines(settings, trained=trained)))


def score_table(scores: dict[str, Any]) -> str:
    """Return a table with one row a metric; n/a for a score that the data cannot give (no box of that size)."""
    rows = [
        (name, "n/a" if value != value else f"{value:.2f}")  # NaN differs from itself
        for name, value in flatten_results_dict(scores).items()
        if f"{VALIDATION}/loss_" not in name  # of the losses the sum is enough; metrics.json has them all
    ]
    return tabulate(rows, headers=["metric", "value"], tablefmt="simple_outline", disable_numparse=True)


def _best(metric: str) -> str:
    averaged = ", averaged weights" if metric.startswith(AVERAGE_PREFIX) else ""
    return f"best {metric}{averaged}"


def output_lines(settings: TrainSettings, *, trained: bool) -> list[str]:
    """Return lines that say which file holds what."""
    names = {"model_final.pth": "weights and training state", "model_best.pth": _best(settings.best_metric)}
    names |= {"metrics.json": "losses and scores", "log.txt": "log"} if trained else {}
    names |= {"config.yaml": "this run's config", "inference": "detections"}
    names |= {os.path.join("report", "report.html"): "report on them"}
    paths = {os.path.join(settings.output_dir, name): what for name, what in names.items()}
    return [f"  {path}  {what}" for path, what in paths.items() if os.path.exists(path)]
