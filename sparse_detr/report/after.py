"""Write the report of a training or an evaluation at its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.errors import UserError
from sparse_detr.report import NUMBERS
from sparse_detr.report.make import make_report, source_of_run
from sparse_detr.report.words import duplicates, of_data

if TYPE_CHECKING:
    from sparse_detr.config.run import Run

logger = logging.getLogger(__name__)

FOLDER = "report"


def report_after(run: Run, scores: Mapping[str, Any]) -> None:
    """Write the report of the evaluation that has just ended into the run's folder, on the main process.

    Nothing is written without scores or where `train.report` is off. No error ends the run: the log says why there is
    no report.

    Args:
        run: that was trained or evaluated.
        scores: of the evaluation.
    """
    from detectron2.utils import comm

    if not (run.settings.report and scores and comm.is_main_process()):
        return
    folder = Path(run.settings.output_dir, FOLDER)
    start = time.perf_counter()
    old = f"; the files in {folder} are of an earlier evaluation" if (folder / NUMBERS).exists() else ""
    try:
        report = make_report(source_of_run(run, run.settings.output_dir), folder)
    except UserError as error:
        logger.warning(f"no report was written: {error}{old}")
    except Exception as error:  # hours of training must not end in a failure of what only reports on them
        logger.warning(f"no report was written, because of a fault in it: {type(error).__name__}: {error}{old}")
    else:
        logger.info(f"report written to {folder} in {time.perf_counter() - start:.1f} s")
        if sentence := of_data(report.numbers):
            logger.warning(sentence)
        for reason in report.skipped:
            logger.warning(f"not shown among the images with most errors: {reason}")
        if sentence := duplicates(report.numbers):
            logger.info(sentence)
