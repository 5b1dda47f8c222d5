"""What an exported file computes: pixels in, detections out, with tensors alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from sparse_detr.structures import check_image_sizes

if TYPE_CHECKING:
    from sparse_detr.modeling.detector import GeneralizedDETR
    from sparse_detr.modeling.selection import Budget


class DetectionProgram(nn.Module):
    """A detector as a function of tensors: normalisation, the flow and the choice of the detections.

    Args:
        detector: in eval mode.
        budget: how many tokens the encoder refines, see `DetectionTransformer.forward`; constant in an exported file.
    """

    def __init__(self, detector: GeneralizedDETR, *, budget: Budget | float | None = None):
        super().__init__()
        self.detector, self.budget = detector, budget

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images: (B, channels, H, W) pixels of 0 to 255, in the detector's order of channels; what lies outside of
                `sizes` is not read.
            sizes: (B, 2) long, (h, w) of every image, which lies at the top left.

        Returns:
            Boxes (B, D, 4), x1, y1, x2, y2 in pixels and inside of the image; scores (B, D) in [0, 1]; labels (B, D)
            long. A row with the score 0 only fills the batch.
        """
        check_image_sizes(sizes, images)
        detector = self.detector
        tokens = detector.tokenize(self.normalize(images, sizes), sizes)
        effort = detector.effort(self.budget)
        encoded = detector.encode(tokens, effort.tokens)
        queries = detector.query(encoded, num_queries=effort.num_queries)
        last = detector.decode(queries, encoded, num_layers=effort.decoder_layers).predictions[-1]
        scores = detector.postprocess.classification.scores(last.logits)
        if detector.class_channels is not None:
            scores = scores[..., list(detector.class_channels)]
        scores, rows, labels = detector.postprocess.choose(scores, queries.valid)
        boxes = last.boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        return in_pixels(boxes, sizes), scores, labels

    def normalize(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Return the images as the backbone takes them: normalised, with zeros outside of `sizes`."""
        detector = self.detector
        images = _divisible(images, detector.size_divisibility)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device) < sizes[:, :1]
        columns = torch.arange(width, device=images.device) < sizes[:, 1:]
        inside = (rows[:, :, None] & columns[:, None])[:, None]
        return torch.where(inside, (images - detector.pixel_mean) / detector.pixel_std, 0)


def _divisible(images: Tensor, divisor: int) -> Tensor:
    """Return the images with the last row and column repeated until height and width are multiples of a number.

    By index: a padding whose width depends on the size would make the size a constant of an exported file.
    """
    if divisor <= 1:
        return images
    for axis in (-2, -1):
        size = images.shape[axis]
        cells = torch.arange(-(-size // divisor) * divisor, device=images.device)
        images = images.index_select(axis, cells.clamp(max=size - 1))
    return images


def in_pixels(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return (B, D, 4) x1, y1, x2, y2 in pixels, clipped to images (h, w), of cxcywh in [0, 1]."""
    limits = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)
    corners = box_convert(boxes, "cxcywh", "xyxy") * limits
    return torch.minimum(corners.clamp(min=0), limits)
