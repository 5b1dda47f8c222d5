"""From the last decoder layer's predictions to detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from sparse_detr.structures import PredictionGroup


class TopKDetections(nn.Module):
    """The best (query, class) pairs of an image; no suppression, no threshold (Deformable DETR, appendix A.4).

    Args:
        num_detections: detections an image, at most.
    """

    def __init__(self, *, num_detections: int = 100):
        super().__init__()
        self.num_detections = num_detections

    def forward(self, group: PredictionGroup, image_sizes: Sequence[tuple[int, int]]) -> list[Instances]:
        """One `Instances` an image with `pred_boxes` in pixels of `image_sizes` (h, w), `scores`, `pred_classes`."""
        valid = [None] * len(image_sizes) if group.valid is None else list(group.valid)
        return [
            self._detect(group.logits[image], group.boxes[image], valid[image], size)
            for image, size in enumerate(image_sizes)
        ]

    def _detect(self, logits: Tensor, boxes: Tensor, valid: Tensor | None, size: tuple[int, int]) -> Instances:
        if valid is not None:
            logits, boxes = logits[valid], boxes[valid]
        scores, flat = logits.flatten().sigmoid().topk(min(self.num_detections, logits.numel()))
        query = torch.div(flat, logits.shape[-1], rounding_mode="floor")
        height, width = size
        corners = box_convert(boxes[query], "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
        result = Instances(size)
        result.pred_boxes = Boxes(corners)
        result.scores = scores
        result.pred_classes = flat % logits.shape[-1]
        return result
