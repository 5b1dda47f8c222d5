"""Distillation within a step: what a part of a model predicts learns from what all of it predicts.

The queries of a two-stage model differ from budget to budget, so the predictions of the two runs are matched as
predictions and true boxes are: by the matcher of the losses.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sparse_detr.modeling.training.criterion import SetCriterion
from sparse_detr.modeling.training.normalizer import mean_over_processes
from sparse_detr.structures import PredictionGroup, Targets


class Distillation(nn.Module):
    """Draws the last predictions of a step to those of a run of the whole model on the same images, the teacher.

    The teacher's boxes with a sure class are matched to the predictions of the step, one to one. Matched classes learn
    the teacher's probabilities (Kullback-Leibler divergence), matched boxes its boxes (L1 and generalized IoU). The
    losses have the weights of the criterion; they are sums over the teacher's boxes, divided by their number. Backbone
    and tokens are shared by the two runs; encoder, decoder and losses run twice, so a step takes up to twice as long.

    Args:
        weight: of the losses, besides those of the criterion.
        min_score: least probability of the class of a teacher's box.
        trains_all: the teacher has losses of true boxes too, so a step trains the whole model and the drawn part of it;
            else only the drawn part is trained, which has the smallest and the largest budget among its images anyway.
    """

    def __init__(self, *, weight: float = 1.0, min_score: float = 0.3, trains_all: bool = True):
        super().__init__()
        self.weight, self.min_score, self.trains_all = weight, min_score, trains_all

    def forward(self, student: PredictionGroup, teacher: PredictionGroup, criterion: SetCriterion) -> dict[str, Tensor]:
        """Return the weighted losses `loss_distill_class`, `loss_distill_bbox` and `loss_distill_giou`."""
        classes = criterion.classification
        scores, labels = classes.scores(teacher.logits.detach()).max(-1)
        rows = (scores >= self.min_score) & teacher.valid_rows
        boxes = [
            Targets(labels=label[sure], boxes=box[sure])
            for label, box, sure in zip(labels, teacher.boxes.detach(), rows, strict=True)
        ]
        (matches,) = criterion.matcher([student], boxes)
        count = mean_over_processes(rows.sum().to(student.boxes.dtype))
        (losses,) = criterion.group_losses([replace(student, matches=matches)], boxes, count)
        learned = torch.cat([logits[chosen] for logits, (chosen, _) in zip(student.logits, matches, strict=True)])
        taught = torch.cat(
            [logits[sure][true] for logits, sure, (_, true) in zip(teacher.logits, rows, matches, strict=True)]
        )
        losses["class"] = classes.divergence(learned, taught.detach()).sum() / count
        return {f"loss_distill_{name}": self.weight * criterion.weights[name] * loss for name, loss in losses.items()}
