"""The losses of the evaluation data: how the model, as it is evaluated, fits true boxes that it did not learn from."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from detectron2.evaluation import inference_context
from detectron2.utils import comm
from torch import nn

from sparse_detr.config.duration import duration_text
from sparse_detr.config.kinds import kind_of
from sparse_detr.config.run import Run
from sparse_detr.data.loader import loader_with_targets
from sparse_detr.engine.distributed import without_ddp
from sparse_detr.engine.random_state import keep_random_state
from sparse_detr.errors import UserError
from sparse_detr.modeling.training.normalizer import alone

logger = logging.getLogger(__name__)

GROUP = "validation"  # the scores are named validation/total_loss, validation/loss_class, ...
TOTAL = "total_loss"
_SECONDS_BETWEEN_LINES = 30

Losses = dict[str, float]


def validation_losses(run: Run, model: nn.Module, before_batch: Callable[[], None] | None = None) -> Losses:
    """Return the weighted losses of the evaluation data by name, and their sum as `total_loss`.

    The model is in eval mode: no dropout, batch norms with their collected statistics, all of the model where training
    draws a part. Denoising queries, which start from the true boxes, and losses of distillation are left out. A batch
    counts as often as it has true boxes, at least once, so that losses per box are those of all images in one batch,
    whatever the number of processes. Random numbers of the training stay as they are.

    Args:
        run: with the evaluation sets, all of which count, and `validation_loss`.
        model: has a method `losses`; the main process gets the result, the others {}.
        before_batch: called before each batch.

    Raises:
        UserError: see `loader_with_targets`.
    """
    model, wanted = without_ddp(model), run.settings.validation_loss
    num_batches = None if wanted is True else int(wanted)
    found: list[tuple[int, Losses]] = []
    with keep_random_state(), inference_context(model), torch.no_grad(), alone():
        for evaluation_set in run.evaluation_sets:
            loader = loader_with_targets(evaluation_set.build_loader(), num_batches)
            found += _losses_of_batches(model, loader, before_batch or (lambda: None))
    gathered = comm.gather(found)
    if not comm.is_main_process():
        return {}
    losses = mean_losses([batch for of_rank in gathered for batch in of_rank])
    logger.info(f"validation loss: {losses.get(TOTAL, math.nan):.5g}")
    return losses


def _losses_of_batches(
    model: nn.Module, loader: Iterable[list[dict[str, Any]]], before_batch: Callable[[], None]
) -> list[tuple[int, Losses]]:
    """Return number of true boxes and losses of every batch; images that cannot be read are left out."""
    found: list[tuple[int, Losses]] = []
    number, start = len(loader), time.monotonic()  # type: ignore[arg-type]
    told = start
    for index, batch in enumerate(loader):
        before_batch()
        if usable := [item for item in batch if "instances" in item]:
            losses = model.losses(usable, denoising=False)
            values = torch.stack([loss.float() for loss in losses.values()]).cpu().tolist()
            boxes = sum(len(item["instances"]) for item in usable)
            found.append((boxes, dict(zip(losses, values, strict=True))))
        if (now := time.monotonic()) - told > _SECONDS_BETWEEN_LINES:
            told, rest = now, (now - start) / (index + 1) * (number - index - 1)
            logger.info(f"validation loss: batch {index + 1} of {number}, ETA {duration_text(rest)}")
    return found


def mean_losses(batches: Iterable[tuple[int, Losses]]) -> Losses:
    """Return the mean of the losses of batches, each weighted by its true boxes, at least 1, and their sum.

    Args:
        batches: number of true boxes and losses of each; the order does not matter to the last bit.
    """
    values: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for boxes, losses in batches:
        for name, loss in losses.items():
            values[name].append((max(boxes, 1), loss))
    means = {
        name: math.fsum(weight * loss for weight, loss in of_name) / sum(weight for weight, _ in of_name)
        for name, of_name in values.items()
    }
    return {TOTAL: math.fsum(means.values()), **means} if means else {}


def check_validation_loss(run: Run, model: nn.Module) -> None:
    """Refuse a validation loss that cannot be computed.

    Raises:
        UserError: there are no evaluation data, or the model, such as one of Detectron2, has losses in training only.
    """
    if not run.settings.validation_loss:
        return
    remedy = kind_of(run.config).assignment("train.validation_loss", False)
    if not run.evaluation_sets:
        raise UserError(f"there are no evaluation data for a validation loss; give some, or set {remedy}")
    if not hasattr(model, "losses"):
        raise UserError(f"{type(model).__name__} has losses in training mode only; set {remedy}")
