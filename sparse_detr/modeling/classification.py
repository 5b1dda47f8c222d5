"""What a class logit means: the prior it starts from, the cost of a match, the loss, and the scores of detections.

One object defines all four, so that heads, matcher, criterion and detections always agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss


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
        """Return the number of logits of a head for `num_classes`."""
        return num_classes

    def initialize(self, classifier: nn.Linear) -> None:
        """Set the bias of a new linear classifier to the prior."""
        nn.init.constant_(classifier.bias, -math.log((1 - self.prior) / self.prior))

    def scores(self, logits: Tensor) -> Tensor:
        """Return (..., classes) probabilities of (..., classes) logits."""
        return logits.sigmoid()

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the (Q, T) focal cost of matching (Q, classes) logits with (T,) labels."""
        probability = logits[:, labels].sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        return positive - negative

    def loss(
        self, logits: Tensor, matched: tuple[Tensor, Tensor], labels: Tensor, valid: Tensor | None, normalizer: Tensor
    ) -> Tensor:
        """Return the focal loss.

        Args:
            logits: (B, Q, classes).
            matched: image and row of every matched prediction, two (n,) long tensors.
            labels: (n,) long, the true labels of the matched predictions; all other predictions are background.
            valid: (B, Q) bool, False on rows that only fill the batch; None where every row counts.
            normalizer: divisor of the sum over all predictions.
        """
        truth = torch.zeros_like(logits)
        truth[(*matched, labels)] = 1
        loss = sigmoid_focal_loss(logits, truth, alpha=self.alpha, gamma=self.gamma, reduction="none")
        if valid is not None:
            loss = loss * valid[..., None]
        return loss.sum() / normalizer
