"""Operations on boxes that torchvision does not have."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of numbers in [0, 1], finite at both ends: log(max(x, eps) / max(1 - x, eps))."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


def generalized_iou(boxes: Tensor, others: Tensor, eps: float) -> Tensor:
    """Return the generalized IoU (...) of boxes cxcywh (..., 4) that are broadcast against each other.

    It has a gradient. torchvision's function of this name takes all pairs and no `eps`; its loss takes two equal shapes
    and so needs every pair written out.

    Args:
        boxes, others: cxcywh, of widths and heights of at least 0.
        eps: added to both denominators.
    """
    left, top, right, bottom = box_convert(boxes, "cxcywh", "xyxy").unbind(-1)
    other_left, other_top, other_right, other_bottom = box_convert(others, "cxcywh", "xyxy").unbind(-1)
    width = (torch.min(right, other_right) - torch.max(left, other_left)).clamp(min=0)
    height = (torch.min(bottom, other_bottom) - torch.max(top, other_top)).clamp(min=0)
    inner = width * height
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    union = areas - inner
    outer_width = torch.max(right, other_right) - torch.min(left, other_left)
    outer = outer_width * (torch.max(bottom, other_bottom) - torch.min(top, other_top))
    return inner / (union + eps) - (outer - union) / (outer + eps)
