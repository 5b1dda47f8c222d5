"""The training losses: one set loss for every prediction group (DETR, section 3.1; Deformable DETR, appendix A.4)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.layers import generalized_iou
from sparse_detr.modeling.classification import Classification, SigmoidFocal
from sparse_detr.modeling.training.matching import HungarianMatcher, Matches
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
        for group, values in zip(groups, self.group_losses(groups, targets, normalizer), strict=True):
            weights = self.weights if group.matches is None else self.denoising_weights
            for name, loss in values.items():
                losses[f"loss_{name}{group.suffix}"] = weights[name] * loss
        return losses

    def group_losses(
        self, groups: Sequence[PredictionGroup], targets: Sequence[Targets], normalizer: Tensor
    ) -> list[dict[str, Tensor]]:
        """Return the unweighted losses of every group, which are computed together."""
        matches = self._match(groups, targets)
        rows, true = _flat_matches(groups, matches, targets)
        counts = [sum(len(true) for _, true in images) for images in matches]
        normalizers = [normalizer * group.repeats for group in groups]
        labels = _labels(groups, torch.cat([target.labels for target in targets])[true], counts)
        boxes = torch.cat([target.boxes for target in targets])[true]
        values = {
            "class": self._class_losses(groups, rows, labels, normalizers),
            **self._box_losses(groups, rows, boxes, counts, normalizers),
        }
        return [{name: of_groups[i] for name, of_groups in values.items()} for i in range(len(groups))]

    def _match(self, groups: Sequence[PredictionGroup], targets: Sequence[Targets]) -> list[Matches]:
        """Return the matches of every group: its own, else those of the matcher."""
        found = iter(self.matcher([group for group in groups if group.matches is None], targets))
        return [next(found) if group.matches is None else list(group.matches) for group in groups]

    def _class_losses(
        self, groups: Sequence[PredictionGroup], rows: Tensor, labels: Tensor, normalizers: Sequence[Tensor]
    ) -> list[Tensor]:
        logits = torch.cat([group.logits.flatten(0, 1) for group in groups])
        sizes = [group.logits.shape[:2].numel() for group in groups]
        return self.classification.losses(logits, (rows, labels), _valid_rows(groups), sizes, normalizers)

    def _box_losses(
        self,
        groups: Sequence[PredictionGroup],
        rows: Tensor,
        true_boxes: Tensor,
        counts: list[int],
        normalizers: Sequence[Tensor],
    ) -> dict[str, list[Tensor]]:
        predicted = torch.cat([group.boxes.flatten(0, 1) for group in groups])[rows]
        of_pairs = {
            "bbox": F.l1_loss(predicted, true_boxes, reduction="none"),
            "giou": 1 - generalized_iou(predicted, true_boxes, self.iou_eps),
        }
        return {
            name: [part.sum() / by for part, by in zip(loss.split(counts), normalizers, strict=True)]
            for name, loss in of_pairs.items()
        }


def _flat_matches(
    groups: Sequence[PredictionGroup], matches: Sequence[Matches], targets: Sequence[Targets]
) -> tuple[Tensor, Tensor]:
    """Return the matched rows, counted over all groups and images, and true boxes, counted over all images.

    Row q of an image is row `(earlier rows of groups) + image * Q + q`.
    """
    sizes = [group.boxes.shape[:2] for group in groups]
    starts = [0, *accumulate(size.numel() for size in sizes)]
    firsts = [start + image * size[1] for start, size in zip(starts, sizes, strict=False) for image in range(size[0])]
    first_true = [0, *accumulate(len(target.labels) for target in targets)][:-1] * len(groups)
    pairs = [pair for images in matches for pair in images]
    lengths = torch.tensor([len(rows) for rows, _ in pairs])
    offsets = torch.tensor([firsts, first_true]).repeat_interleave(lengths, 1)
    flat = torch.stack([torch.cat([rows for rows, _ in pairs]), torch.cat([true for _, true in pairs])])
    rows, true = flat + offsets.to(flat.device)
    return rows, true


def _labels(groups: Sequence[PredictionGroup], labels: Tensor, counts: list[int]) -> Tensor:
    """Return the labels of all matches; those of a class-agnostic group are 0."""
    parts = zip(groups, labels.split(counts), strict=True)
    return torch.cat([torch.zeros_like(part) if group.class_agnostic else part for group, part in parts])


def _valid_rows(groups: Sequence[PredictionGroup]) -> Tensor | None:
    """Return (rows of all groups,) bool, False on rows that only fill the batch; None if every row counts."""
    if all(group.valid is None for group in groups):
        return None
    return torch.cat([group.valid_rows.flatten() for group in groups])
