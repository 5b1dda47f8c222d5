"""Hooks that end a training before its last iteration: after a time, or when the score no longer improves.

Both end it as if the config had asked for so many iterations: with a final checkpoint, an evaluation and a line in the
log that says why. A resumed training goes on counting.
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from detectron2.engine import HookBase

from sparse_detr.config.duration import duration_text
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.run import Run, TrainSettings
from sparse_detr.engine.best import improvement, scores_after
from sparse_detr.engine.checkpointer import FINAL, TrainingCheckpointer, complete
from sparse_detr.engine.distributed import largest_of_ranks, on_main_process
from sparse_detr.engine.evaluate import AVERAGE_PREFIX
from sparse_detr.engine.hooks import Evaluate
from sparse_detr.engine.validation import GROUP as VALIDATION
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)


class _EndEarly(HookBase):
    """Can end the training: after the current iteration, or before the first one of a resumed training."""

    def __init__(self, checkpointer: TrainingCheckpointer) -> None:
        self._checkpointer = checkpointer

    def _end(self, why: str) -> None:
        self.trainer.max_iter = self.trainer.iter + 1
        logger.info(f"the training ends after {self.trainer.max_iter} iterations: {why}")

    def _end_at_once(self, why: str, remedy: str) -> None:
        self.trainer.max_iter = self.trainer.start_iter
        logger.warning(f"the training does not go on after {self.trainer.max_iter} iterations: {why}; {remedy}")
        complete(self._checkpointer, self._checkpointer.resumed_from)


class StopAfterTime(_EndEarly):
    """Ends the training with the iteration after which it has taken so much time, that before a resume included.

    The time is that of all iterations, evaluations and checkpoints, except for the last evaluation, which comes on top.
    Must come before the hooks that save and evaluate.

    Args:
        seconds: time of the whole training.
        checkpointer: copies the final checkpoint if a resumed training has no time left.
        clock: returns seconds.
    """

    def __init__(
        self, *, seconds: float, checkpointer: TrainingCheckpointer, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(checkpointer)
        self._limit, self._clock = seconds, clock
        self._before, self._start = 0.0, clock()

    def used(self) -> float:
        """Return the seconds that the training has taken so far."""
        return self._before + self._clock() - self._start

    def left(self) -> float:
        """Return the seconds that are left; negative ones once the time is over."""
        return self._limit - self.used()

    def state_dict(self) -> dict[str, Any]:
        """Return the time so far."""
        return {"seconds": self.used()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from the time of a checkpoint."""
        self._before = float(state_dict["seconds"])

    def before_train(self) -> None:
        """Start the clock; end at once if the time before a resume was enough."""
        self._start = self._clock()
        if self._is_over():
            self._end_at_once(self._why(), "raise train.max_time (SOLVER.MAX_TIME) to go on")

    def after_step(self) -> None:
        """End the training if the time is over on any rank."""
        if self._is_over() and self.trainer.iter + 1 < self.trainer.max_iter:
            self._end(self._why())

    def _is_over(self) -> bool:
        return bool(largest_of_ranks(int(self.used() >= self._limit), self.trainer.device))

    def _why(self) -> str:
        return f"its time is over ({duration_text(self.used())} of {duration_text(self._limit)})"


@dataclass
class Progress:
    """Counts the evaluations since a score has improved.

    Args:
        metric: name of the score; of a loss smaller is better, see `improvement`.
        best: the best score so far; None before the first one.
        best_at: number of iterations after which it was reached.
        waited: evaluations since then.
        counted: number of iterations of the last evaluation that counts.
    """

    metric: str
    best: float | None = None
    best_at: int = 0
    waited: int = 0
    counted: int = 0

    def count(self, value: float, *, done: int, min_improvement: float = 0.0) -> None:
        """Take the score after `done` iterations into account; NaN is no improvement."""
        better = math.isfinite(value) and (
            self.best is None or improvement(self.metric, value, self.best) > min_improvement
        )
        if better:
            self.best, self.best_at, self.waited = value, done, 0
        else:
            self.waited += 1
        self.counted = done


class StopWithoutProgress(_EndEarly):
    """Ends the training after `patience` evaluations one after the other without an improvement.

    Must come after the hooks that evaluate and keep the best model.

    Args:
        metric: name of a score; larger is better, of losses smaller.
        patience: number of evaluations.
        min_improvement: a score must be better than the best one by more than this much.
        period: iterations between two evaluations.
        evaluation: has the scores.
        checkpointer: writes the final checkpoint.
    """

    def __init__(
        self,
        *,
        metric: str,
        patience: int,
        min_improvement: float,
        period: int,
        evaluation: Evaluate,
        checkpointer: TrainingCheckpointer,
    ) -> None:
        super().__init__(checkpointer)
        self._patience, self._min_improvement, self._period = patience, min_improvement, period
        self._evaluation = evaluation
        self.progress = Progress(metric)

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted so far."""
        return asdict(self.progress)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from a checkpoint, unless it counted another score."""
        if state_dict["metric"] == self.progress.metric:
            self.progress = Progress(**state_dict)
        else:
            logger.warning(
                f"early stopping counts anew: it watches {self.progress.metric}, and the checkpoint counted "
                f"{state_dict['metric']}"
            )

    def before_train(self) -> None:
        """Count the evaluation after the checkpoint of a resume, which was written before it."""
        start, folder = self.trainer.start_iter, self._checkpointer.save_dir
        if start and start % self._period == 0 and start != self.trainer.max_iter:
            self._count(start, self._evaluation.scores or on_main_process(lambda: scores_after(folder, start)))
        if self._is_over():
            self._end_at_once(self._why(), "raise train.early_stopping.patience (SOLVER.EARLY_STOPPING.PATIENCE)")

    def after_step(self) -> None:
        """Count the score of an evaluation; end the training if there were too many without an improvement."""
        done = self.trainer.iter + 1
        if self._evaluation.done != done:
            return
        self._count(done, self._evaluation.scores)
        if self._is_over():
            self._end(self._why())
            self._checkpointer.save(FINAL.removesuffix(".pth"), iteration=self.trainer.iter)

    def _count(self, done: int, scores: dict[str, float]) -> None:
        metric = self.progress.metric
        if done <= self.progress.counted:
            return
        if metric in scores:
            self.progress.count(scores[metric], done=done, min_improvement=self._min_improvement)
        else:
            names = ", ".join(scores) or "none"
            logger.warning(f"early stopping cannot count: there is no score {metric}; the scores are {names}")

    def _is_over(self) -> bool:
        return self.progress.waited >= self._patience

    def _why(self) -> str:
        progress = self.progress
        best = "it was never a finite number" if progress.best is None else f"best: {progress.best:.5g}"
        more = f" by more than {self._min_improvement:g}" if self._min_improvement else ""
        return (
            f"{progress.metric} has not improved{more} in {progress.waited} evaluations "
            f"({best}, after {progress.best_at} iterations)"
        )


def check_early_stopping(run: Run) -> None:
    """Refuse early stopping that would never count a score.

    Raises:
        UserError: there are no evaluations during the training, or they do not have the score.
    """
    settings, assignment = run.settings, kind_of(run.config).assignment
    if not settings.early_stopping["patience"]:
        return
    if not run.evaluation_sets or not settings.eval_period:
        period = assignment("train.eval_period", 1000)
        raise UserError(f"early stopping counts evaluations, and there are none; give validation data and {period}")
    metric = _watched_metric(settings)
    if metric.removeprefix(AVERAGE_PREFIX).startswith(f"{VALIDATION}/") and not settings.validation_loss:
        remedy = assignment("train.validation_loss", True)
        raise UserError(f"early stopping watches {metric}, which is not computed; add {remedy}")
    if metric.startswith(AVERAGE_PREFIX) and not settings.ema_decay:
        remedy = assignment("train.ema.enabled", True)
        raise UserError(f"early stopping watches {metric}, but no weights are averaged; add {remedy}")


def _watched_metric(settings: TrainSettings) -> str:
    return settings.early_stopping["metric"] or settings.best_metric


def early_stopping(
    settings: TrainSettings, checkpointer: TrainingCheckpointer, evaluation: Evaluate
) -> list[StopWithoutProgress]:
    """Return the hook of early stopping; [] without it."""
    options = {**settings.early_stopping, "metric": _watched_metric(settings), "period": settings.eval_period}
    if not options["patience"]:
        return []
    return [StopWithoutProgress(**options, evaluation=evaluation, checkpointer=checkpointer)]


def time_limit(settings: TrainSettings, checkpointer: TrainingCheckpointer) -> StopAfterTime | None:
    """Return the hook of the time budget; None without one."""
    if settings.max_time is None:
        return None
    return StopAfterTime(seconds=settings.max_time, checkpointer=checkpointer)
