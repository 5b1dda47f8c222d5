"""Train and evaluate as a `Run` describes."""

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from sparse_detr.budget import check_fits, resolved
from sparse_detr.checkpoint import load_file
from sparse_detr.config.num_classes import check_num_classes
from sparse_detr.config.run import Run, TrainSettings
from sparse_detr.engine.auto_batch import choose_batch
from sparse_detr.engine.checkpointer import (
    LastCheckpoint,
    TrainingCheckpointer,
    complete,
    find_last_checkpoint,
    numbered_checkpoints,
    resume,
    start_anew,
)
from sparse_detr.engine.config_changes import flat_config, write_config
from sparse_detr.engine.console import AllLosses, ConsoleLine
from sparse_detr.engine.cpu import set_up_cpu
from sparse_detr.engine.distributed import on_main_process, wrap_for_ranks
from sparse_detr.engine.early_end import StopAfterTime, check_early_stopping, early_stopping, time_limit
from sparse_detr.engine.evaluate import WithBudget, evaluate_with_average
from sparse_detr.engine.hooks import AverageWeights, Evaluate, KeepBest, SaveCheckpoints, StopOnSignal
from sparse_detr.engine.output import (
    WriteMetrics,
    disk_error,
    disk_errors_for_users,
    hold_folder,
    one_line_errors,
    what_is_saved,
    worker_error,
)
from sparse_detr.engine.prepare import prepare_model
from sparse_detr.engine.token_log import LogPictures, LogTokens, load_validation_image
from sparse_detr.engine.trainer import Trainer
from sparse_detr.engine.validation import check_validation_loss
from sparse_detr.engine.weights import load_trained_weights, load_weights
from sparse_detr.engine.writers import build_writers, check_writers
from sparse_detr.errors import UserError
from sparse_detr.files import CannotWrite, make_folder
from sparse_detr.inference import optimize_to

logger = logging.getLogger(__name__)


def train(run: Run, *, resume_last: bool = False, ema: bool = False) -> dict[str, Any]:
    """Train, evaluate and write checkpoints as `run` says; meanwhile no other training can use the output folder.

    Args:
        resume_last: go on from the last whole checkpoint in the output folder, if there is one.
        ema: start from the averaged weights of the checkpoint that the config names.

    Returns:
        dict: the scores after the last iteration.

    Raises:
        UserError: a fault that the user can mend, such as a full disk; says where the training is saved.
    """
    folder = run.settings.output_dir
    with hold_folder(folder), disk_errors_for_users(folder):
        _check_folders(run)
        # Before the model is built, which takes long, so that a broken checkpoint is an error at once.
        last = find_last_checkpoint(folder) if resume_last else LastCheckpoint()
        return _train(run, last, resume_last=resume_last, ema=ema)


def _train(run: Run, last: LastCheckpoint, *, resume_last: bool, ema: bool) -> dict[str, Any]:
    settings = run.settings
    check_early_stopping(run)
    on_main_process(lambda: check_writers(settings.writers))
    choose_batch(run, last.path)
    model = run.build_model()
    set_up_cpu(settings.device)
    prepare_model(model, settings)
    optimizer = run.build_optimizer(model)
    trainer = build_trainer(run, model, optimizer)
    check_num_classes(model, run.train_names)
    check_validation_loss(run, model)
    average = AverageWeights(model=model, decay=settings.ema_decay) if settings.ema_decay else None
    averaged = {"ema": average.average} if average else {}
    averaged_model = average.average.module if average else None
    checkpointer = TrainingCheckpointer(
        model, settings.output_dir, config=flat_config(run), trainer=trainer, **averaged
    )
    stop = StopOnSignal(checkpointer=checkpointer)
    # Saves before the evaluation, so that a crash of the evaluation loses nothing.
    periodic = SaveCheckpoints(checkpointer, **_checkpoint_options(settings))
    scores: dict[str, Any] = {}

    def evaluate_now() -> dict[str, Any]:
        scores.clear()
        scores.update(evaluate_with_average(run, model, averaged_model, stop.interrupt_evaluation))
        return scores

    limit = time_limit(settings, checkpointer)
    evaluation = _evaluation_hooks(
        settings, checkpointer, averaged_model, evaluate_now if run.evaluation_sets else None
    )
    best = next((hook for hook in evaluation if isinstance(hook, KeepBest)), None)
    writing: list[HookBase] = []
    on_main_process(lambda: writing.extend(_writer_hooks(run, model, best, limit, resumed=bool(last.path))))
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=run.build_schedule(optimizer)),
            average,
            limit,
            periodic,
            *evaluation,
            stop,
            *writing,
        ]
    )
    if last.path:
        start = _resume(settings, checkpointer, trainer, last)
        periodic.recent_checkpoints = numbered_checkpoints(settings.output_dir, before=start)
    else:
        if resume_last:
            logger.warning(f"no checkpoint in {settings.output_dir}: the training starts at iteration 0")
        load_weights(model, settings.init_checkpoint, skip_other_classes=True, ema=ema)
        start = 0
        on_main_process(lambda: start_anew(settings.output_dir))
    on_main_process(lambda: write_config(run))
    with one_line_errors(settings.output_dir), _say_what_is_saved(settings.output_dir):
        trainer.train(start, settings.max_iter)
    return scores


def evaluate_only(
    run: Run,
    *,
    resume_last: bool = False,
    ema: bool = False,
    random_weights: bool = False,
    precision: str | None = None,
    budget: float | str | None = None,
) -> dict[str, Any]:
    """Return the scores of the checkpoint that the config names, or of the last one in the output folder.

    The averaged weights in it are evaluated too if the config turns them on.

    Args:
        resume_last: take the last whole checkpoint in the output folder, if there is one.
        ema: evaluate the averaged weights alone.
        random_weights: evaluate an untrained model if no checkpoint is named.
        precision: evaluate the inference form in this precision; None for the model as it trains.
        budget: how many tokens the encoder refines, as in a call of the model; None for the model's own.

    Raises:
        UserError: there are no data to evaluate on, the weights are missing or broken, or there is no such form
            or budget.
    """
    if not run.evaluation_sets:
        raise UserError(
            "there is nothing to evaluate on, since the config names no validation data; add --val-json and "
            "--val-images, or dataloader.test and dataloader.evaluator (lazy), DATASETS.TEST (yaml)"
        )
    last = find_last_checkpoint(run.settings.output_dir) if resume_last else LastCheckpoint()
    path = last.path or run.settings.init_checkpoint
    if not path and not random_weights:
        raise UserError(
            "no weights to evaluate are named; give train.init_checkpoint=FILE (lazy) or MODEL.WEIGHTS FILE (yaml), or "
            "--resume for the last checkpoint of the output folder"
        )
    if precision is not None or budget is not None:  # such a model has no losses of its own
        run = replace(run, settings=replace(run.settings, validation_loss=False))
    model = run.build_model()
    if not path:
        logger.warning("no checkpoint is named: the scores below are those of RANDOM weights")
    load_trained_weights(model, path, ema=ema)
    average = None if ema else _average_of(run, model, path)
    model = optimize_to(model.eval(), precision)
    average = None if average is None else optimize_to(average.eval(), precision)
    if budget is not None:
        budget = resolved(budget, weights=path, form=precision, ema=ema)
        check_fits("--budget", budget, model)
        model, average = WithBudget(model, budget), average and WithBudget(average, budget)
    with disk_errors_for_users(run.settings.output_dir):
        return evaluate_with_average(run, model, average)


def _average_of(run: Run, model: nn.Module, path: str) -> nn.Module | None:
    """Return the model with the averaged weights of a checkpoint; None if it has none or the config averages none."""
    if not run.settings.ema_decay or not os.path.isfile(path) or "ema" not in load_file(path):
        return None
    average = copy.deepcopy(model)
    load_trained_weights(average, path, ema=True)
    return average


def _check_folders(run: Run) -> None:
    """Make the folder of the evaluations now, so that an error comes at once and not at the first of them."""
    if run.settings.output_dir and run.evaluation_sets:
        on_main_process(lambda: str(make_folder(os.path.join(run.settings.output_dir, "inference"))))


@contextmanager
def _say_what_is_saved(folder: str) -> Iterator[None]:
    """Add, to an error of the disk or of a data-loading process, from which checkpoint the training can go on."""
    try:
        yield
    except (OSError, RuntimeError, UserError) as error:
        if known := disk_error(error, folder):
            raise CannotWrite(f"{known}; {what_is_saved(folder)}") from error
        if not isinstance(error, UserError) and (known := worker_error(error)):
            raise UserError(f"{known}; {what_is_saved(folder)}") from error
        raise


def build_trainer(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer) -> Trainer:
    """Return the training loop of a run, without hooks."""
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
    """Return the checkpointer's settings: all ranks save, since each adds its random state; the main one deletes."""
    return settings.checkpointer if comm.is_main_process() else {**settings.checkpointer, "max_to_keep": None}


def _evaluation_hooks(
    settings: TrainSettings,
    checkpointer: TrainingCheckpointer,
    average: nn.Module | None,
    evaluate_now: Callable[[], dict[str, Any]] | None,
) -> list[HookBase]:
    if evaluate_now is None:
        return []
    period, metric = settings.eval_period, settings.best_metric
    evaluation = Evaluate(period=period, evaluate=evaluate_now)
    best = KeepBest(period=period, evaluation=evaluation, checkpointer=checkpointer, metric=metric, average=average)
    return [evaluation, best, *early_stopping(settings, checkpointer, evaluation)]


def _writer_hooks(
    run: Run, model: nn.Module, best: KeepBest | None, limit: StopAfterTime | None, *, resumed: bool
) -> list[HookBase]:
    """Return the hooks of the main process that log and write, in this order."""
    settings, folder = run.settings, run.settings.output_dir
    hooks_of_log: list[HookBase] = [LogTokens(model=model, period=settings.log_period)]
    if settings.vis_period:
        image = load_validation_image(run)
        hooks_of_log.append(LogPictures(model=model, image=image, period=settings.vis_period))
    line = ConsoleLine(
        max_iter=settings.max_iter,
        metric=settings.best_metric,
        best=lambda: None if best is None else best.best,
        time_left=None if limit is None else limit.left,
        device=settings.device,
    )
    services = build_writers(settings.writers, folder=folder, config=flat_config(run), resumed=resumed)
    writers = [line, AllLosses(settings.max_iter), *services]
    return [*hooks_of_log, WriteMetrics(folder=folder, period=settings.log_period, writers=writers)]


def _resume(settings: TrainSettings, checkpointer: TrainingCheckpointer, trainer: Trainer, last: LastCheckpoint) -> int:
    """Load the training of a checkpoint; return the iteration to go on with."""
    start = resume(checkpointer, trainer, last, max_iter=settings.max_iter)
    if start == settings.max_iter:
        complete(checkpointer, last.path)
    _start_data_at(trainer.data_loader, start * settings.accumulate)
    return start


def _start_data_at(data_loader: Any, batch: int) -> None:
    from sparse_detr.data.loader import TrainLoader, set_start_iteration

    if isinstance(data_loader, TrainLoader):
        set_start_iteration(data_loader, batch)
    else:
        logger.warning(
            f"{type(data_loader).__name__} cannot start in the middle, so the data begin anew; "
            "use sparse_detr.data.loader.build_train_loader for an exact resume"
        )
