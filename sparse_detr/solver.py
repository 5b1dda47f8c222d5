"""Parameter groups and learning-rate schedules of the DETR family, as functions that a config can name.

Deformable DETR, section 4 and appendix A.4: AdamW, learning rate 2e-4, a tenth of it for the backbone and for the
layers that predict sampling offsets and reference points, weight decay 1e-4 on every parameter. DINO, DAB-DETR and
Focus-DETR: 1e-4, a tenth of it for the backbone only; Focus-DETR has no weight decay on norms.
"""

import logging
import math
from collections.abc import Sequence

from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler, MultiStepParamScheduler, ParamScheduler
from torch import nn

from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)

REFERENCE_BATCH_SIZE = 16
_BATCH_SIZE_RULES = {"none": lambda ratio: 1.0, "sqrt": math.sqrt, "linear": lambda ratio: ratio}
_SAMPLING_PARAMETERS = ("sampling_offsets", "reference_points")


def scale_learning_rate(lr: float, *, total_batch_size: int, rule: str = "none") -> float:
    """Return the learning rate for `total_batch_size` images from the one for 16 images, and log it.

    Args:
        rule: "none" (Deformable DETR), "sqrt" (public code of Sparse DETR) or "linear".

    Raises:
        UserError: there is no such rule.
    """
    if rule not in _BATCH_SIZE_RULES:
        raise UserError(f"unknown learning-rate scaling {rule!r}; choose one of {', '.join(_BATCH_SIZE_RULES)}")
    scaled = lr * _BATCH_SIZE_RULES[rule](total_batch_size / REFERENCE_BATCH_SIZE)
    logger.info(
        f"learning rate {scaled:.3g} for {total_batch_size} images an iteration "
        f"({lr:.3g} at {REFERENCE_BATCH_SIZE} images, batch scaling: {rule})"
    )
    return scaled


def detr_parameter_groups(
    model: nn.Module,
    base_lr: float,
    weight_decay: float = 1e-4,
    norm_weight_decay: float | None = None,
    backbone_multiplier: float = 0.1,
    sampling_multiplier: float = 0.1,
    total_batch_size: int = REFERENCE_BATCH_SIZE,
    accumulate: int = 1,
    batch_size_scaling: str = "none",
) -> list[dict]:
    """Group parameters by name, with smaller learning rates for the backbone and the sampling layers.

    Args:
        norm_weight_decay: weight decay of normalisation layers; None for `weight_decay`.
        total_batch_size: images of a batch over all processes.
        accumulate: batches per optimiser step.
        batch_size_scaling: rule of `scale_learning_rate`, for the images of a step.

    Returns:
        Detectron2's groups: {"params", "lr", "weight_decay"}, equal hyper-parameters merged.
    """
    lr = scale_learning_rate(base_lr, total_batch_size=total_batch_size * accumulate, rule=batch_size_scaling)

    def factor(name: str) -> float:
        if name.startswith("backbone."):
            return backbone_multiplier
        return sampling_multiplier if any(part in name for part in _SAMPLING_PARAMETERS) else 1.0

    return get_default_optimizer_params(
        model, base_lr=lr, weight_decay=weight_decay, weight_decay_norm=norm_weight_decay, lr_factor_func=factor
    )


def _with_warmup(schedule: ParamScheduler, *, max_iter: int, warmup_iters: int) -> ParamScheduler:
    if not warmup_iters:
        return schedule
    return WarmupParamScheduler(schedule, warmup_factor=0.001, warmup_length=min(warmup_iters / max_iter, 1.0))


def step_schedule(
    *, max_iter: int, drop_at: Sequence[float] = (0.8,), gamma: float = 0.1, warmup_iters: int = 0
) -> ParamScheduler:
    """Return a multiplier that falls by `gamma` at each fraction of the training in `drop_at` (paper: epoch 40 of 50).

    A drop after the last iteration, as in a very short run, is left out.
    """
    drops = sorted({max(round(fraction * max_iter), 1) for fraction in drop_at})
    milestones = [drop for drop in drops if drop < max_iter]
    schedule = MultiStepParamScheduler(
        values=[gamma**passed for passed in range(len(milestones) + 1)], milestones=milestones, num_updates=max_iter
    )
    return _with_warmup(schedule, max_iter=max_iter, warmup_iters=warmup_iters)


def cosine_schedule(*, max_iter: int, end_factor: float = 0.0, warmup_iters: int = 0) -> ParamScheduler:
    """Return a multiplier that falls from 1 to `end_factor` as half a cosine wave."""
    return _with_warmup(CosineParamScheduler(1.0, end_factor), max_iter=max_iter, warmup_iters=warmup_iters)
