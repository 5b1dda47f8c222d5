"""Hooks of a training that Detectron2 lacks, or has in another form."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparse_detr.checkpoint.unwrap import KIND, OF_AVERAGE
from sparse_detr.engine.best import (
    best_score,
    improvement,
    last_scored,
    remove_score,
    write_last_scored,
    write_score,
)
from sparse_detr.engine.checkpointer import BEST_PREFIX, TrainingCheckpointer
from sparse_detr.engine.distributed import from_main_process, largest_of_ranks, on_main_process
from sparse_detr.engine.evaluate import AVERAGE_PREFIX
from sparse_detr.engine.random_state import keep_random_state

logger = logging.getLogger(__name__)

_SAME_PRESS = 1.0  # seconds: one Ctrl-C may arrive twice, from the terminal and from the launching process


class AverageWeights(HookBase):
    """An exponential moving average of the weights; add `self.average` to the checkpointer to resume it.

    Args:
        model: without DistributedDataParallel.
        decay: share of the old average that stays at each iteration.
    """

    def __init__(self, *, model: nn.Module, decay: float) -> None:
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        self.average.update_parameters(self.model)


class SaveCheckpoints(hooks.PeriodicCheckpointer):
    """Detectron2's PeriodicCheckpointer, but a hook before it may end the training with any iteration."""

    def after_step(self) -> None:
        self.max_iter = self.trainer.max_iter
        super().after_step()


class Evaluate(hooks.EvalHook):
    """Detectron2's EvalHook, but it keeps the random state of the training and skips failed trainings.

    Every rank gets the results of the main process, so that all decide alike. `scores` are those of the last evaluation
    by name, after `done` iterations.
    """

    def __init__(self, *, period: int, evaluate: Callable[[], dict[str, Any]]) -> None:
        super().__init__(period, lambda: self._keep(from_main_process(evaluate())))
        self.scores: dict[str, float] = {}
        self.done = 0

    def _keep(self, results: dict[str, Any]) -> dict[str, Any]:
        self.scores = {name: float(value) for name, value in flatten_results_dict(results).items()}
        return results

    def _do_eval(self) -> None:
        with keep_random_state():
            super()._do_eval()
        self.done = self.trainer.iter + 1

    def catch_up(self) -> None:
        """Evaluate again after the last iteration before a resume, if its scores were lost."""
        self.trainer.storage.iter = self.trainer.start_iter - 1
        self._do_eval()
        self.done = self.trainer.start_iter

    def after_train(self) -> None:
        """Evaluate at the end, unless the last evaluation was of the same weights."""
        if self.trainer.iter >= self.trainer.max_iter != self.done:
            super().after_train()


class KeepBest(HookBase):
    """Keeps the weights with the best score in `model_best.pth`, and the score in the same file.

    `model_best.json` is a copy of the score for people to read.

    Args:
        period: iterations between two evaluations.
        evaluation: the hook before this one; evaluates again if a kill came between a checkpoint and its score.
        checkpointer: writes the file.
        metric: name of a score, of which larger is better, or of a loss; one with "ema/" is of the averaged weights.
        average: the averaged weights, which are saved if the metric is of them.
    """

    def __init__(
        self,
        *,
        period: int,
        evaluation: Evaluate,
        checkpointer: TrainingCheckpointer,
        metric: str,
        average: nn.Module | None = None,
    ) -> None:
        self._period = period
        self._evaluation = evaluation
        self._checkpointer = checkpointer
        self._metric = metric
        self._average = average if metric.startswith(AVERAGE_PREFIX) else None
        self._best: float | None = None
        self._scored = 0

    @property
    def best(self) -> float | None:
        """The best score so far; None before the first one."""
        return self._best

    def before_train(self) -> None:
        """Read the best score if the training is resumed; a new one in the same folder starts without."""
        folder, start = self._checkpointer.save_dir, self.trainer.start_iter
        self._best = on_main_process(lambda: best_score(folder, self._metric, start) if start > 0 else None)
        scored = on_main_process(lambda: last_scored(folder) if start > 0 else 0)
        if self._is_due(start) and scored < start:
            logger.info(f"the scores after {start} iterations were lost: evaluating again")
            self._evaluation.catch_up()
            self._keep_if_best(start)

    def _is_due(self, done: int) -> bool:
        return done > 0 and self._period > 0 and done % self._period == 0 and done != self.trainer.max_iter

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._is_due(done):
            self._keep_if_best(done)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter != self._scored:
            self._keep_if_best(self.trainer.max_iter)

    def _keep_if_best(self, done: int) -> None:
        value, iteration = self.trainer.storage.latest().get(self._metric, (None, 0))
        if value is None:
            logger.warning(f"{self._metric} was not evaluated, so no best model is kept; see the names of the scores")
        elif not math.isfinite(value) or (self._best is not None and improvement(self._metric, value, self._best) <= 0):
            logger.info(f"{self._metric} is {value:.5f}; the best is {self._best}")
        else:
            self._save(value, iteration)
        self._scored = done
        scores = self._evaluation.scores
        on_main_process(lambda: write_last_scored(self._checkpointer.save_dir, done, scores))

    def _save(self, value: float, iteration: int) -> None:
        score = {"metric": self._metric, "value": value, "iteration": iteration}
        weights = {KIND: "plain"} if self._average is None else averaged_weights(self._average)
        folder = self._checkpointer.save_dir
        on_main_process(lambda: remove_score(folder))
        self._checkpointer.save(BEST_PREFIX, iteration=iteration, best=score, **weights)
        on_main_process(lambda: write_score(folder, score))
        logger.info(f"best model so far: {self._metric} is {value:.5f} after iteration {iteration}")
        self._best = value


def averaged_weights(average: nn.Module) -> dict[str, Any]:
    """Return the entries of a checkpoint that holds the averaged weights alone; no training can resume from it."""
    return {KIND: OF_AVERAGE, "model": average.state_dict(), "trainer": None}


class StopOnSignal(HookBase):
    """Stops at Ctrl-C or SIGTERM: finishes the iteration, writes a checkpoint, exits with 128 + the signal's number.

    A second Ctrl-C aborts at once. All ranks stop at the same iteration, whichever rank got the signal.
    """

    def __init__(self, *, checkpointer: TrainingCheckpointer) -> None:
        self._checkpointer = checkpointer
        self._received = 0
        self._received_at = 0.0
        self._old_handlers: dict[int, Any] = {}

    def before_train(self) -> None:
        self._process = os.getpid()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old_handlers[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked data-loading process, which must live until the checkpoint is written
        # If the signal has killed a data-loading process, torch's handler would raise in the middle of the step.
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        if self._received:
            if number == signal.SIGINT and time.monotonic() - self._received_at > _SAME_PRESS:
                raise KeyboardInterrupt
            return
        self._received, self._received_at = number, time.monotonic()
        logger.warning(
            f"{signal.Signals(number).name}: finishing this iteration, then a checkpoint is written; "
            "press Ctrl-C again to abort without one"
        )

    def after_step(self) -> None:
        number = largest_of_ranks(self._received, self.trainer.device)
        if number:
            self._stop(number)

    def interrupt_evaluation(self) -> None:
        """Stop between two images of an evaluation; with several processes it is finished, since they share images."""
        if self._received and comm.get_world_size() == 1:
            self._stop(self._received)

    def _stop(self, number: int) -> None:
        name = f"model_{self.trainer.iter:07d}"
        self._checkpointer.save(name, iteration=self.trainer.iter)
        comm.synchronize()
        logger.warning(
            f"stopped by {signal.Signals(number).name} after iteration {self.trainer.iter}; "
            f"{os.path.join(self._checkpointer.save_dir, name)}.pth is written; go on with --resume"
        )
        raise SystemExit(128 + number)

    def after_train(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
