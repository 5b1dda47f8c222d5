"""Operations on boxes that torchvision does not have."""

from __future__ import annotations

from torch import Tensor


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Return the logit of numbers in [0, 1], finite at both ends: log(max(x, eps) / max(1 - x, eps))."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
