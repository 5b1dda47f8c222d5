"""The one training function: from a `Run` to a trained model."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from detectron2.engine import HookBase, default_writers, hooks
from detectron2.utils import comm
from torch import nn

from sparse_detr.config.classes import check_num_classes
from sparse_detr.config.run import Run, TrainSettings
from sparse_detr.engine.checkpoint import TrainingCheckpointer, resume
from sparse_detr.engine.distributed import unwrap, wrap_for_ranks
from sparse_detr.engine.evaluate import evaluate_with_average
from sparse_detr.engine.hooks import AverageWeights, Evaluate, KeepBest, StopOnSignal
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.weights import load_weights

logger = logging.getLogger(__name__)


def train(run: Run, *, resume_last: bool = False) -> dict[str, Any]:
    """Train, evaluate and checkpoint as `run` says.

    Args:
        resume_last: go on from the last checkpoint in the output folder, if there is one.

    Returns:
        dict: the scores after the last iteration.
    """
    settings = run.settings
    model = run.build_model()
    optimizer = run.build_optimizer(model)
    trainer = _build_trainer(run, model, optimizer)
    check_num_classes(model, run.train_names)
    average = AverageWeights(model=model, decay=settings.ema_decay) if settings.ema_decay else None
    averaged = {"ema": average.average} if average else {}
    checkpointer = TrainingCheckpointer(model, settings.output_dir, trainer=trainer, **averaged)
    stop = StopOnSignal(checkpointer=checkpointer)
    scores: dict[str, Any] = {}

    def evaluate_now() -> dict[str, Any]:
        scores.clear()
        averaged_model = average.average.module if average else None
        scores.update(evaluate_with_average(run, model, averaged_model, stop.interrupt_evaluation))
        return scores

    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=run.build_schedule(optimizer)),
            average,
            # Before evaluating, so that a crash of the evaluation loses nothing.
            hooks.PeriodicCheckpointer(checkpointer, **_checkpoint_options(settings)),
            *_evaluation_hooks(settings, checkpointer, evaluate_now if run.evaluation_sets else None),
            stop,
            *_writer_hooks(settings),
        ]
    )
    trainer.train(_load(settings, checkpointer, trainer, resume_last=resume_last), settings.max_iter)
    return scores


def evaluate_only(run: Run, *, resume_last: bool = False) -> dict[str, Any]:
    """Scores of the checkpoint that the config names, or of the last one in the output folder.

    The averaged weights in it are evaluated too where the config turns them on.
    """
    model = run.build_model()
    average = AverageWeights(model=model, decay=run.settings.ema_decay).average if run.settings.ema_decay else None
    averaged = {"ema": average} if average else {}
    checkpointer = TrainingCheckpointer(model, run.settings.output_dir, **averaged)
    use_last = resume_last and checkpointer.has_checkpoint()
    path = checkpointer.get_checkpoint_file() if use_last else run.settings.init_checkpoint
    if not path:
        logger.warning("No checkpoint is named (train.init_checkpoint or MODEL.WEIGHTS): random weights are evaluated.")
    checkpointer.load(path)
    return evaluate_with_average(run, model, average.module if average and average.n_averaged > 0 else None)


def _build_trainer(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> Trainer:
    settings = run.settings
    return Trainer(
        model=wrap_for_ranks(model, torch.device(settings.device), **settings.ddp),
        data_loader=run.build_train_loader(),
        optimizer=optimizer,
        precision=settings.precision,
        clip_grad_norm=settings.clip_grad_norm,
        accumulate=settings.accumulate,
        failure_dir=settings.output_dir,
        config_text=run.config_text,
    )


def _checkpoint_options(settings: TrainSettings) -> dict[str, Any]:
    """All ranks save, since each adds its random state; the main process alone deletes what is too old."""
    return settings.checkpointer if comm.is_main_process() else {**settings.checkpointer, "max_to_keep": None}


def _evaluation_hooks(
    settings: TrainSettings, checkpointer: TrainingCheckpointer, evaluate_now: Callable[[], dict[str, Any]] | None
) -> list[HookBase]:
    if evaluate_now is None:
        return []
    return [
        Evaluate(period=settings.eval_period, evaluate=evaluate_now),
        KeepBest(period=settings.eval_period, checkpointer=checkpointer, metric=settings.best_metric),
    ]


def _writer_hooks(settings: TrainSettings) -> list[HookBase]:
    if not comm.is_main_process():
        return []
    writers = default_writers(settings.output_dir, settings.max_iter)
    return [hooks.PeriodicWriter(writers, period=settings.log_period)]


def _load(settings: TrainSettings, checkpointer: TrainingCheckpointer, trainer: Trainer, *, resume_last: bool) -> int:
    """Load what the training starts from; returns the first iteration."""
    if resume_last and checkpointer.has_checkpoint():
        start = resume(checkpointer, trainer)
        _start_data_at(trainer.data_loader, start * settings.accumulate)
        return start
    load_weights(unwrap(trainer.model), settings.init_checkpoint, skip_other_classes=True)
    return 0


def _start_data_at(data_loader: Any, batch: int) -> None:
    from sparse_detr.data.loader import TrainLoader, set_start_iteration

    if isinstance(data_loader, TrainLoader):
        set_start_iteration(data_loader, batch)
    else:
        logger.warning(
            f"{type(data_loader).__name__} cannot start in the middle: the data begin anew. "
            "Use sparse_detr.data.loader.build_train_loader for an exact resume."
        )
