"""One-to-one assignment of predictions to true boxes (DETR, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from sparse_detr.modeling.classification import Classification, SigmoidFocal
from sparse_detr.structures import PredictionGroup, Targets


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
    def forward(self, group: PredictionGroup, targets: Sequence[Targets]) -> list[tuple[Tensor, Tensor]]:
        """Match the predictions of a group to the true boxes.

        Returns:
            For every image the matched rows and their true boxes, two long tensors of min(Q, T) entries. Rows that
            only fill the batch are never matched.

        Raises:
            FloatingPointError: a cost is not finite.
        """
        return [self._match(group, image, target) for image, target in enumerate(targets)]

    def _match(self, group: PredictionGroup, image: int, target: Targets) -> tuple[Tensor, Tensor]:
        rows = torch.arange(group.logits.shape[1], device=group.logits.device)
        if group.valid is not None:
            rows = rows[group.valid[image]]
        labels = torch.zeros_like(target.labels) if group.class_agnostic else target.labels
        cost = self.cost(group.logits[image, rows], group.boxes[image, rows], labels, target.boxes).cpu()
        if not torch.isfinite(cost).all():
            raise FloatingPointError(
                f"the matching cost of {group.name} is not finite for image {image} of the batch: the predictions have "
                "NaN or infinity; lower the learning rate, clip gradients or train in float32"
            )
        predicted, true = linear_sum_assignment(cost.numpy())
        device = rows.device
        return rows[torch.as_tensor(predicted, device=device)], torch.as_tensor(true, device=device)

    def cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor) -> Tensor:
        """Return the (Q, T) cost of logits (Q, classes), boxes (Q, 4), labels (T,), true boxes (T, 4); boxes cxcywh."""
        distance = torch.cdist(boxes, true_boxes, p=1)
        corners = box_convert(boxes, "cxcywh", "xyxy")[:, None].expand(-1, len(true_boxes), -1)
        true_corners = box_convert(true_boxes, "cxcywh", "xyxy").expand_as(corners)
        apart = generalized_box_iou_loss(corners, true_corners, reduction="none", eps=self.iou_eps)  # 1 - IoU
        overlap = 1 - apart
        classification = self.classification.cost(logits, labels)
        return self.class_weight * classification + self.bbox_weight * distance - self.giou_weight * overlap
