"""From the last decoder layer's predictions to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from sparse_detr.modeling.classification import SigmoidFocal
from sparse_detr.structures import PredictionGroup


class TopKDetections(nn.Module):
    """The best (query, class) pairs of an image; no suppression, no threshold (Deformable DETR, appendix A.4).

    Args:
        classification: what the logits mean; `SigmoidFocal` if None.
        num_detections: detections an image, at most.
    """

    def __init__(self, *, classification: SigmoidFocal | None = None, num_detections: int = 100):
        super().__init__()
        self.classification, self.num_detections = classification or SigmoidFocal(), num_detections

    def forward(
        self,
        group: PredictionGroup,
        image_sizes: Sequence[tuple[int, int]],
        class_channels: Sequence[int] | None = None,
    ) -> list[Instances]:
        """Return one `Instances` an image with `pred_boxes` in pixels, `scores` and `pred_classes`.

        Args:
            group: predictions.
            image_sizes: (h, w) of every image.
            class_channels: for every class of the data set, the logit that stands for it; None if they are the same.
        """
        scores = self.classification.scores(group.logits)
        if class_channels is not None:
            scores = scores[..., class_channels]
        valid = [None] * len(image_sizes) if group.valid is None else list(group.valid)
        return [
            self._detect(scores[image], group.boxes[image], valid[image], size)
            for image, size in enumerate(image_sizes)
        ]

    def _detect(self, scores: Tensor, boxes: Tensor, valid: Tensor | None, size: tuple[int, int]) -> Instances:
        if valid is not None:
            scores, boxes = scores[valid], boxes[valid]
        best, flat = scores.flatten().topk(min(self.num_detections, scores.numel()))
        query = torch.div(flat, scores.shape[-1], rounding_mode="floor")
        height, width = size
        corners = box_convert(boxes[query], "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        result = Instances(size)
        result.pred_boxes = Boxes(corners)
        result.scores = best
        result.pred_classes = flat % scores.shape[-1]
        return result
