"""One-to-one assignment of predictions to true boxes (DETR, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from sparse_detr.layers import generalized_iou
from sparse_detr.modeling.classification import Classification, SigmoidFocal
from sparse_detr.structures import PredictionGroup, Targets

Matches = list[tuple[Tensor, Tensor]]
"""For every image the matched rows and their true boxes, two long tensors of equal length."""


class HungarianMatcher(nn.Module):
    """The assignment of least cost; the cost is the sum of classification, L1 and generalized IoU.

    Args:
        classification: what the logits mean; `SigmoidFocal` if None.
        class_weight, bbox_weight, giou_weight: weights of the three costs.
        iou_eps: see `SetCriterion`.
    """

    def __init__(
        self,
        *,
        classification: Classification | None = None,
        class_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        iou_eps: float = 1e-12,
    ):
        super().__init__()
        self.classification = classification or SigmoidFocal()
        self.class_weight, self.bbox_weight, self.giou_weight = class_weight, bbox_weight, giou_weight
        self.iou_eps = iou_eps

    @torch.no_grad()
    def forward(self, groups: Sequence[PredictionGroup], targets: Sequence[Targets]) -> list[Matches]:
        """Match the predictions of every group to the true boxes.

        The costs of all groups and images come to the host in one copy, and the matches go back in one.

        Returns:
            For every group and image the matched rows and their true boxes, two long tensors of min(Q, T) entries. Rows
            that only fill the batch are never matched.

        Raises:
            FloatingPointError: a cost is not finite.
        """
        if not groups:
            return []
        costs, valid = self._on_host(groups, targets)
        pairs = [
            [
                _assign(group.name, image, cost[image, :, : len(target.labels)], counted[image])
                for image, target in enumerate(targets)
            ]
            for group, cost, counted in zip(groups, costs, valid, strict=True)
        ]
        return _on_device(pairs, groups[0].boxes.device)

    def _on_host(
        self, groups: Sequence[PredictionGroup], targets: Sequence[Targets]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return for every group its costs (B, Q, T), T the largest number of true boxes, and valid rows (B, Q)."""
        labels = pad_sequence([target.labels for target in targets], batch_first=True)
        true_boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        class_costs = [
            self.classification.cost(group.logits, torch.zeros_like(labels) if group.class_agnostic else labels)
            for group in groups
        ]
        boxes = torch.cat([group.boxes for group in groups], 1)
        costs = self._weigh(torch.cat(class_costs, 1), boxes, true_boxes)
        valid = torch.cat([group.valid_rows for group in groups], 1)
        on_host = torch.cat([costs, valid[..., None].to(costs.dtype)], -1).cpu().numpy()
        of_groups = np.split(on_host, np.cumsum([group.boxes.shape[1] for group in groups])[:-1], axis=1)
        return [group[..., :-1] for group in of_groups], [group[..., -1] > 0 for group in of_groups]

    def cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor) -> Tensor:
        """Return the cost of every prediction and true box.

        Args:
            logits: (..., Q, logits).
            boxes: (..., Q, 4) cxcywh.
            labels: (..., T) long.
            true_boxes: (..., T, 4) cxcywh.

        Returns:
            (..., Q, T).
        """
        return self._weigh(self.classification.cost(logits, labels), boxes, true_boxes)

    def _weigh(self, class_cost: Tensor, boxes: Tensor, true_boxes: Tensor) -> Tensor:
        """Return the cost (..., Q, T) of boxes (..., Q, 4) and true boxes (..., T, 4) with the class cost."""
        distance = torch.cdist(boxes, true_boxes, p=1)
        overlap = generalized_iou(boxes[..., :, None, :], true_boxes[..., None, :, :], self.iou_eps)
        return self.class_weight * class_cost + self.bbox_weight * distance - self.giou_weight * overlap


def _assign(name: str, image: int, cost: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the matched rows and true boxes of the cost (Q, T) of one image and its valid rows (Q,)."""
    rows = valid.nonzero()[0]
    cost = cost[rows]
    if not np.isfinite(cost).all():
        raise FloatingPointError(
            f"the matching cost of {name} is not finite for image {image} of the batch: the predictions have NaN or "
            "infinity; lower the learning rate, clip gradients or train in float32"
        )
    predicted, true = linear_sum_assignment(cost)
    return rows[predicted], true


def _on_device(pairs: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], device: torch.device) -> list[Matches]:
    """Return arrays (rows, true boxes) of every group and image as long tensors; one copy moves them all."""
    flat = [np.stack(pair) for images in pairs for pair in images]
    both = torch.from_numpy(np.concatenate(flat, 1).astype(np.int64)).to(device)
    parts = iter(both.split([part.shape[1] for part in flat], 1))
    return [[_pair(next(parts)) for _ in images] for images in pairs]


def _pair(both: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two rows of a tensor."""
    rows, true = both
    return rows, true
