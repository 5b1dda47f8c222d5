"""What a class logit means: the prior it starts from, the cost of a match, the loss, and the scores of detections.

One object defines all four, so that heads, matcher, criterion and detections always agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Classification(Protocol):
    """What the class logits of a model mean."""

    def num_logits(self, num_classes: int) -> int:
        """Return the number of logits of a head for `num_classes`."""

    def initialize(self, classifier: nn.Linear) -> None:
        """Set the bias of a new linear classifier."""

    def scores(self, logits: Tensor) -> Tensor:
        """Return (..., classes) probabilities of (..., logits)."""

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the (..., Q, T) cost of matching (..., Q, logits) with (..., T) labels."""

    def divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the (R,) Kullback-Leibler divergence of the classes of (R, logits) from those of `teacher`."""

    def losses(
        self,
        logits: Tensor,
        matched: tuple[Tensor, Tensor],
        valid: Tensor | None,
        sizes: Sequence[int],
        normalizers: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return the class losses of groups of predictions.

        Args:
            logits: (R, logits), the predictions of all groups, one group after another.
            matched: rows and labels of all matched predictions, two (n,) long tensors; all other predictions are
                background.
            valid: (R,) bool, False on rows that only fill the batch; None where every row counts.
            sizes: number of rows of every group, R in all.
            normalizers: number of true boxes of every group, for losses that are a sum over all predictions divided by
                it.
        """


@dataclass(frozen=True, kw_only=True)
class SigmoidFocal:
    """Independent classes with a sigmoid and the focal loss; no background class (Deformable DETR, appendix A.4).

    Args:
        alpha, gamma: parameters of the focal loss.
        prior: initial probability of every class.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    prior: float = 0.01

    def num_logits(self, num_classes: int) -> int:
        """Return `num_classes`."""
        return num_classes

    def initialize(self, classifier: nn.Linear) -> None:
        """Set the bias of a new linear classifier to the prior."""
        nn.init.constant_(classifier.bias, -math.log((1 - self.prior) / self.prior))

    def scores(self, logits: Tensor) -> Tensor:
        """Return (..., classes) probabilities of (..., classes) logits."""
        return logits.sigmoid()

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the (..., Q, T) focal cost of matching (..., Q, classes) logits with (..., T) labels."""
        more_boxes_than_classes = labels.shape[-1] > logits.shape[-1]
        if not more_boxes_than_classes:  # the powers and logarithms of the fewer columns
            logits = _columns(logits, labels)
        probability = logits.sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        cost = positive - negative
        return _columns(cost, labels) if more_boxes_than_classes else cost

    def losses(
        self,
        logits: Tensor,
        matched: tuple[Tensor, Tensor],
        valid: Tensor | None,
        sizes: Sequence[int],
        normalizers: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return the focal losses, summed over a group and divided by its normalizer; see `Classification`."""
        loss = self._background_loss(logits)
        loss[matched] = self._object_loss(logits[matched])
        if valid is not None:
            loss = loss * valid[:, None]
        return [part.sum() / normalizer for part, normalizer in zip(loss.split(sizes), normalizers, strict=True)]

    def divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the sum over the classes, each with its own sigmoid; see `Classification`."""
        taught = teacher.sigmoid()
        cross = F.binary_cross_entropy_with_logits(logits, taught, reduction="none")
        return (cross - F.binary_cross_entropy_with_logits(teacher, taught, reduction="none")).sum(-1)

    def _background_loss(self, logits: Tensor) -> Tensor:
        """Return -(1 - alpha) p^gamma log(1 - p) of every logit. Few logits are matched, so no truth is stored."""
        return (1 - self.alpha) * (logits.sigmoid() ** self.gamma * _softplus(logits))

    def _object_loss(self, logits: Tensor) -> Tensor:
        """Return -alpha (1 - p)^gamma log(p) of every logit."""
        return self.alpha * ((-logits).sigmoid() ** self.gamma * _softplus(-logits))


@dataclass(frozen=True, kw_only=True)
class SoftmaxNoObject:
    """Exclusive classes with a softmax; the last logit means "no object" (DETR, section 3.1).

    Args:
        no_object_weight: weight of background in the loss, above 0: a batch without true boxes is divided by
            these weights only.

    Raises:
        ValueError: the weight is not above 0.
    """

    no_object_weight: float = 0.1

    def __post_init__(self) -> None:
        if not self.no_object_weight > 0:
            raise ValueError(f"no_object_weight must be above 0, got {self.no_object_weight}; DETR has 0.1")

    def num_logits(self, num_classes: int) -> int:
        """Return `num_classes` and one for "no object"."""
        return num_classes + 1

    def initialize(self, classifier: nn.Linear) -> None:
        """Keep the initial values: there is no prior."""

    def scores(self, logits: Tensor) -> Tensor:
        """Return the probabilities of the classes, without that of "no object"."""
        return logits.softmax(-1)[..., :-1]

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the negative probabilities, (..., Q, T)."""
        return -_columns(logits.softmax(-1), labels)

    def losses(
        self,
        logits: Tensor,
        matched: tuple[Tensor, Tensor],
        valid: Tensor | None,
        sizes: Sequence[int],
        normalizers: Sequence[Tensor],
    ) -> list[Tensor]:
        """Return for every group its mean cross-entropy, weighted by class; see `Classification`.

        The divisor is the sum of the weights in the group and batch of this process, not the number of true boxes.
        """
        rows, labels = matched
        background = logits.shape[-1] - 1
        truth = logits.new_full(logits.shape[:1], background, dtype=torch.long)
        truth[rows] = labels
        weights = logits.new_ones(logits.shape[-1])
        weights[background] = self.no_object_weight
        if valid is not None:
            truth = truth.masked_fill(~valid, -100)  # the index that cross-entropy ignores
        parts = zip(logits.split(sizes), truth.split(sizes), strict=True)
        return [F.cross_entropy(*part, weights) for part in parts]

    def divergence(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """Return the divergence of the softmax, "no object" included; see `Classification`."""
        logs = logits.log_softmax(-1), teacher.log_softmax(-1)
        return F.kl_div(*logs, reduction="none", log_target=True).sum(-1)


def _softplus(x: Tensor) -> Tensor:
    """Return log(1 + exp(x)), exact up to 80; above, where it equals x in every dtype, exp would overflow."""
    return F.softplus(x, threshold=80)


def _columns(x: Tensor, labels: Tensor) -> Tensor:
    """Return the columns (..., Q, T) of `x` (..., Q, classes) with the numbers `labels` (..., T)."""
    return x.gather(-1, labels[..., None, :].expand(*x.shape[:-1], -1))
