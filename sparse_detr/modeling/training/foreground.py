"""Foreground labels of tokens, made from true boxes, and the loss of the token scores (Focus-DETR, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from sparse_detr.modeling.training.normalizer import mean_over_processes
from sparse_detr.structures import DetectorOutput, Pyramid, Targets

SizeRule = Literal["chessboard", "side"]


class ForegroundSupervision(nn.Module):
    """Focal loss of the token scores against foreground labels.

    Args:
        labels: makes the labels.
        weight: weight of the loss.
        alpha, gamma: parameters of the focal loss.
        normalization: `batch` divides the loss by the number of foreground tokens of all images; `image`, as the public
            implementation, divides the loss of every image by its own number, at least 1, and averages over images.
        padding: `ignored`: padding has no loss; `negative`: padding is background, as in the public implementation.
    """

    needs_attention_map = False

    def __init__(
        self,
        *,
        labels: ForegroundLabels,
        weight: float,
        alpha: float = 0.25,
        gamma: float = 2.0,
        normalization: Literal["batch", "image"] = "batch",
        padding: Literal["ignored", "negative"] = "ignored",
    ):
        super().__init__()
        self.labels, self.weight, self.alpha, self.gamma = labels, weight, alpha, gamma
        self.normalization, self.padding = normalization, padding

    def forward(self, output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the weighted `loss_foreground`."""
        assert output.token_scores is not None
        scores, padding_mask = output.token_scores, output.pyramid.padding_mask
        labels = self.labels(output.pyramid, [target.boxes for target in targets], output.image_sizes).to(scores)
        loss = sigmoid_focal_loss(scores, labels, alpha=self.alpha, gamma=self.gamma)
        if self.padding == "ignored":
            loss = loss.masked_fill(padding_mask, 0)
        return {"loss_foreground": self.weight * self._normalized(loss.sum(1), labels.sum(1))}

    def _normalized(self, losses: Tensor, positives: Tensor) -> Tensor:
        if self.normalization == "image":
            return (losses / positives.clamp(min=1)).mean()
        return losses.sum() / mean_over_processes(positives.sum())


class ForegroundLabels(nn.Module):
    """Labels of tokens: foreground if the centre lies in a true box whose size is in the range of the level.

    The range of level l, with 0 the finest, ends at R 2^l pixels; that of the coarsest level has no end.

    Args:
        finest_range: R.
        rule: `chessboard`: the size of a box is half its longer side, and the range of a level starts halfway between
            start and end of the next finer one, both ends included, so that most boxes belong to two levels; `side` is
            the public implementation: the size is the distance from the token to the farthest side of the box, and
            the range of a level starts where that of the finer one ends.
        strides: strides of the finest levels; each further one is twice the last. They put centres on whole pixels at
            (j + 1/2) stride, as the public implementation does. None takes the centres of the model's reference
            points, which differ where a stride does not divide the image.
    """

    def __init__(self, *, finest_range: float, rule: SizeRule = "chessboard", strides: Sequence[int] | None = None):
        super().__init__()
        self.finest_range, self.rule = finest_range, rule
        self.strides = None if strides is None else tuple(strides)

    @torch.no_grad()
    def forward(self, pyramid: Pyramid, boxes: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Label the tokens of a batch.

        Args:
            pyramid: geometry.
            boxes: (T, 4) of every image, cxcywh in [0, 1] of the unpadded image.
            image_sizes: (h, w) of every image before padding.

        Returns:
            (B, N) bool, False on padding.
        """
        pixels = torch.tensor(image_sizes, device=pyramid.device, dtype=boxes[0].dtype).flip(-1)  # (B, 2)
        positions = self._positions(pyramid, pixels)
        scaled = [image * size.repeat(2) for image, size in zip(boxes, pixels, strict=True)]
        # One image at a time: padded to the image with most boxes, a batch could take gigabytes.
        labels = [self._label(*image, pyramid) for image in zip(positions, scaled, strict=True)]
        return torch.stack(labels) & ~pyramid.padding_mask

    def _label(self, positions: Tensor, boxes: Tensor, pyramid: Pyramid) -> Tensor:
        """Return the (N,) bool labels from (N, 2) positions and (T, 4) boxes, both in pixels."""
        halves = boxes[:, 2:] / 2
        distance = (positions[:, None] - boxes[:, :2]).abs()  # (N, T, 2)
        inside = (distance < halves).all(-1)
        size = (halves[None] if self.rule == "chessboard" else distance + halves).amax(-1)
        starts, ends = size_ranges(len(pyramid.spatial_shapes), self.finest_range, self.rule)
        levels = pyramid.cells[:, 0]
        start, end = (positions.new_tensor(bounds)[levels, None] for bounds in (starts, ends))
        fitting = (size <= end) & (size >= start if self.rule == "chessboard" else size > start)
        return (inside & fitting).any(-1)

    def _positions(self, pyramid: Pyramid, pixels: Tensor) -> Tensor:
        """Return (B, N, 2): token centres in pixels, as (x, y); `pixels` (B, 2) are the sizes of the images, (w, h)."""
        if self.strides is None:
            return pyramid.centers(pixels.dtype) * pixels[:, None]
        strides = list(self.strides)
        while len(strides) < len(pyramid.spatial_shapes):
            strides.append(2 * strides[-1])
        stride = torch.tensor(strides, device=pyramid.device)[pyramid.cells[:, :1]]
        centers = (pyramid.cells[:, 1:] * stride + stride // 2).flip(-1).to(pixels.dtype)
        return centers.expand(len(pixels), -1, -1)


def size_ranges(num_levels: int, finest_range: float, rule: SizeRule) -> tuple[list[float], list[float]]:
    """Return start and end of the size range of every level, in pixels."""
    ends = [finest_range * 2.0**level for level in range(num_levels)]
    starts = [0.0]
    for end in ends[:-1]:
        starts.append((starts[-1] + end) / 2 if rule == "chessboard" else end)
    return starts, [*ends[:-1], inf]
