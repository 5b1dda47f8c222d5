"""What a class logit means: the prior it starts from, the cost of a match, the loss, and the scores of detections.

One object says all four, so that heads, matcher, criterion and detections cannot disagree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss


@dataclass(frozen=True, kw_only=True)
class SigmoidFocal:
    """Every class on its own, by a sigmoid and the focal loss; no background class (Deformable DETR, appendix A.4).

    Args:
        alpha, gamma: of the focal loss.
        prior: probability that every class starts with.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    prior: float = 0.01

    def num_logits(self, num_classes: int) -> int:
        """Return how many logits a head has for `num_classes`."""
        return num_classes

    def initialize(self, classifier: nn.Linear) -> None:
        """Give a fresh linear classifier its prior."""
        nn.init.constant_(classifier.bias, -math.log((1 - self.prior) / self.prior))

    def scores(self, logits: Tensor) -> Tensor:
        """Return (..., classes) probabilities of (..., classes) logits."""
        return logits.sigmoid()

    def cost(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the (Q, T) focal cost of giving (Q, classes) logits the (T,) labels."""
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
            matched: images and rows, two (n,) long tensors, of the matched predictions.
            labels: (n,) long, theirs; the label of all others is that they are no object.
            valid: (B, Q) bool, False on rows that only fill the batch; None where every row counts.
            normalizer: what the sum over all is divided by.
        """
        truth = torch.zeros_like(logits)
        truth[(*matched, labels)] = 1
        loss = sigmoid_focal_loss(logits, truth, alpha=self.alpha, gamma=self.gamma, reduction="none")
        if valid is not None:
            loss = loss * valid[..., None]
        return loss.sum() / normalizer
