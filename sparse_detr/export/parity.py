"""Does an exported file detect what the model detects? Compared on images of several sizes, alone and in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.errors import UserError

SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 1e-3  # of the long side of the image: one pixel in 1000
LAST_BAND = 1e-3  # relative
MIN_EQUAL_SHARE = 0.98
CROP_STEP = 1 / 8


@dataclass(frozen=True)
class Parity:
    """How well the detections of a file and of the model agree.

    A detection has a partner if the other side has one of the same label, whose score differs by at most
    SCORE_TOLERANCE and whose box by at most BOX_TOLERANCE of the long side. The choice of detections is discrete, so a
    rounding may exchange the last ones: those whose score is within LAST_BAND of the last one's are not counted. So is
    the choice of tokens, therefore a few may be without a partner.

    Args:
        detections: number of the counted detections of both sides.
        without_partner: how many of them have no partner.
        score_difference: largest of those with a partner.
        box_difference: largest of those with a partner, in pixels.
        images: number of the images.
        sizes: their (h, w).
    """

    detections: int
    without_partner: int
    score_difference: float
    box_difference: float
    images: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def is_equal(self) -> bool:
        """Whether enough detections have a partner."""
        return self.detections > 0 and self.without_partner <= (1 - MIN_EQUAL_SHARE) * self.detections

    def __str__(self) -> str:
        sizes = ", ".join(f"{height}x{width}" for height, width in self.sizes)
        equal = self.detections - self.without_partner
        return (
            f"{equal} of {self.detections} detections agree on {self.images} images ({sizes}), alone and in one batch; "
            f"largest difference: score {self.score_difference:.1e}, box {self.box_difference:.1e} pixels"
        )


def check_parity(
    exported: nn.Module,
    model: nn.Module,
    inputs: Sequence[dict[str, Any]],
    *,
    fixed_size: Sequence[int] | None = None,
    **budget: Any,
) -> Parity:
    """Compare the detections of an exported detector with the model's.

    Args:
        exported: takes and gives what the model does.
        model: in eval mode.
        inputs: images as the model takes them.
        fixed_size: (h, w) to which both pad their batches; a convolutional backbone sees where its image ends.
        budget: the argument of the model that sets how many tokens are refined.

    Raises:
        UserError: they differ.
    """
    found, expected = [], []
    for batch in [*([item] for item in inputs), list(inputs)]:
        with torch.no_grad():
            results = model([*batch, *_filler(batch, fixed_size)], **budget)
        expected += [result["instances"] for result in results[: len(batch)]]
        found += [result["instances"] for result in exported(batch)]
    sizes = tuple(tuple(item["image"].shape[-2:]) for item in inputs)
    parity = compare(found, expected, images=len(inputs), sizes=sizes)
    if not parity.is_equal:
        raise UserError(
            f"the file's detections are not those of the model: {parity}; nothing is written. Weights of a trained "
            "model agree better than random ones; please report it for a trained model"
        )
    return parity


def _filler(batch: Sequence[dict[str, Any]], size: Sequence[int] | None) -> list[dict[str, Any]]:
    """Return a gray image of a size, beside which all others are padded to it."""
    return [] if size is None else [{"image": batch[0]["image"].new_full((3, *size), 128)}]


def compare(found: Sequence[Any], expected: Sequence[Any], **facts: Any) -> Parity:
    """Compare lists of `Instances`, one an image."""
    counted, lost = 0, 0
    scores, boxes = [0.0], [0.0]
    for one, other in zip(found, expected, strict=True):
        limit = BOX_TOLERANCE * max(one.image_size)
        score_gap = (one.scores[:, None] - other.scores).abs()
        box_gap = (one.pred_boxes.tensor[:, None] - other.pred_boxes.tensor).abs().amax(-1)
        same = one.pred_classes[:, None] == other.pred_classes
        near = same & (score_gap <= SCORE_TOLERANCE) & (box_gap <= limit)
        last = max(_last(one.scores), _last(other.scores))
        for side, partner in ((one, near.any(1)), (other, near.any(0))):
            counts = side.scores > last * (1 + LAST_BAND)
            counted += int(counts.sum())
            lost += int((counts & ~partner).sum())
        pair = torch.where(near, score_gap + box_gap, torch.inf)
        if near.any():
            rows = near.any(1)
            partner = pair[rows].argmin(1, keepdim=True)
            scores.append(float(score_gap[rows].gather(1, partner).max()))
            boxes.append(float(box_gap[rows].gather(1, partner).max()))
    return Parity(counted, lost, max(scores), max(boxes), **facts)


def _last(scores: Tensor) -> float:
    return float(scores.min()) if len(scores) else 0.0


def of_several_sizes(inputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the inputs; if their images all have one size, parts of them, the first one whole."""
    if len({item["image"].shape for item in inputs}) > 1 or len(inputs) < 2:
        return list(inputs)
    return [_part(item, index) for index, item in enumerate(inputs)]


def _part(item: dict[str, Any], index: int) -> dict[str, Any]:
    """Cut off the right side of odd images and the bottom of all, more with every image."""
    image = item["image"]
    height, width = image.shape[-2:]
    height = max(round(height * (1 - CROP_STEP * (index // 2 % 4))), 1)
    width = max(round(width * (1 - CROP_STEP * ((index + 1) // 2 % 4))), 1)
    return {**item, "image": image[:, :height, :width], "height": height, "width": width}
