"""An exported file in the place of a model: Detectron2's inputs in, `Instances` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from sparse_detr.errors import UserError
from sparse_detr.export.metadata import Metadata

CHANNELS = 3


class ExportedDetector(nn.Module):
    """The detections of an exported file, in the form of `GeneralizedDETR.detect`.

    Args:
        run: images (B, 3, H, W) and sizes (B, 2) -> boxes, scores and labels, such as an `ExportedFile`.
        metadata: of the file.
    """

    def __init__(self, run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]], metadata: Metadata):
        super().__init__()
        self.run, self.metadata = run, metadata

    def forward(self, batched_inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect; boxes are scaled to `height` and `width` of every image.

        Args:
            batched_inputs: one dict an image: `image` (3, h, w) with pixels of 0 to 255, `height` and `width`.

        Raises:
            UserError: an image is larger than the file takes.
        """
        images, sizes = self.batch([item["image"] for item in batched_inputs])
        with torch.no_grad():
            found = self.run(images, sizes)
        results = []
        for item, boxes, scores, labels in zip(batched_inputs, *found, strict=True):
            height, width = item["image"].shape[-2:]
            real = scores > 0  # the others only fill the batch
            instances = Instances((height, width), pred_boxes=Boxes(boxes[real]))
            instances.scores, instances.pred_classes = scores[real], labels[real]
            size = item.get("height", height), item.get("width", width)
            results.append({"instances": detector_postprocess(instances, *size)})
        return results

    def batch(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the images at the top left of one tensor (B, 3, H, W), and their sizes (B, 2)."""
        sizes = torch.tensor([image.shape[-2:] for image in images])
        limit, fixed = sizes.amax(0).tolist(), self.metadata.fixed_size
        if fixed is not None and any(side > most for side, most in zip(limit, fixed, strict=True)):
            raise UserError(
                f"an image of {limit[0]} x {limit[1]} pixels after preprocessing, but the file takes at most "
                f"{fixed[0]} x {fixed[1]}; export again with a larger --fixed-size, or give a smaller image"
            )
        height, width = fixed or [max(side, self.metadata.min_size) for side in limit]
        batch = torch.zeros(len(images), CHANNELS, height, width)
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[-2], : image.shape[-1]] = image
        return batch, sizes
