"""The training losses: one set loss for every prediction group (DETR, section 3.1; Deformable DETR, appendix A.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from sparse_detr.modeling.classification import Classification, SigmoidFocal
from sparse_detr.modeling.training.matching import HungarianMatcher
from sparse_detr.modeling.training.normalizer import mean_over_processes
from sparse_detr.structures import PredictionGroup, Targets


class SetCriterion(nn.Module):
    """Matches every group to the true boxes, then sums class, L1 and generalized IoU losses per true box.

    A group that has matches already, such as denoising queries, keeps them.

    Args:
        matcher: assigns predictions to true boxes.
        classification: what the logits mean; `SigmoidFocal` if None.
        class_weight, bbox_weight, giou_weight: weights of the losses, the same for every group.
        iou_eps: added to the denominators of the generalized IoU; the public code of DAB-DETR and DINO adds 1e-6.
        denoising_class_weight: weight of the class loss of groups with own matches; None for `class_weight`.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        classification: Classification | None = None,
        class_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        iou_eps: float = 1e-12,
        denoising_class_weight: float | None = None,
    ):
        super().__init__()
        self.matcher, self.classification = matcher, classification or SigmoidFocal()
        self.weights = {"class": class_weight, "bbox": bbox_weight, "giou": giou_weight}
        given = class_weight if denoising_class_weight is None else denoising_class_weight
        self.denoising_weights = {**self.weights, "class": given}
        self.iou_eps = iou_eps

    def forward(self, groups: Sequence[PredictionGroup], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the weighted losses `loss_class`, `loss_bbox`, `loss_giou`, each with the suffix of its group.

        Args:
            groups: the supervised predictions.
            targets: true boxes of every image.
        """
        count = targets[0].boxes.new_tensor(float(sum(len(target.labels) for target in targets)))
        normalizer = mean_over_processes(count)
        losses = {}
        for group in groups:
            weights = self.weights if group.matches is None else self.denoising_weights
            for name, loss in self.group_losses(group, targets, normalizer).items():
                losses[f"loss_{name}{group.suffix}"] = weights[name] * loss
        return losses

    def group_losses(self, group: PredictionGroup, targets: Sequence[Targets], normalizer: Tensor) -> dict[str, Tensor]:
        """Return the unweighted losses of one group."""
        matches = self.matcher(group, targets) if group.matches is None else group.matches
        normalizer = normalizer * group.repeats
        images = torch.cat([torch.full_like(rows, image) for image, (rows, _) in enumerate(matches)])
        rows = torch.cat([rows for rows, _ in matches])
        labels = torch.cat([target.labels[true] for target, (_, true) in zip(targets, matches, strict=True)])
        boxes = torch.cat([target.boxes[true] for target, (_, true) in zip(targets, matches, strict=True)])
        if group.class_agnostic:
            labels = torch.zeros_like(labels)
        predicted = group.boxes[images, rows]
        corners = box_convert(predicted, "cxcywh", "xyxy"), box_convert(boxes, "cxcywh", "xyxy")
        return {
            "class": self.classification.loss(group.logits, (images, rows), labels, group.valid, normalizer),
            "bbox": F.l1_loss(predicted, boxes, reduction="sum") / normalizer,
            "giou": generalized_box_iou_loss(*corners, reduction="sum", eps=self.iou_eps) / normalizer,
        }
