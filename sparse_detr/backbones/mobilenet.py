"""MobileNetV2 from torchvision as a Detectron2 backbone, for small machines."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor
from torchvision.models import mobilenet_v2

from sparse_detr.backbones.folding import fold_frozen_norms


class MobileNetV2(Backbone):
    """MobileNetV2 1.0 with frozen batch norm, folded into the convolutions.

    Parameters have the names of torchvision's `mobilenet_v2().features`.

    Args:
        out_features: maps to return, of `stride4`, `stride8`, `stride16` and `stride32`; there are no layers after the
            last of them.
        freeze_at: which parts have no gradient: 0 none, 1 up to stride 2, 2 up to stride 4, ..., 5 everything.

    Raises:
        ValueError: there is no such map.
    """

    # Last block before the next stride, and its channels.
    stages = {"stride2": (1, 16), "stride4": (3, 24), "stride8": (6, 32), "stride16": (13, 96), "stride32": (18, 1280)}

    def __init__(self, *, out_features: Sequence[str] = ("stride8", "stride16", "stride32"), freeze_at: int = 2):
        super().__init__()
        unknown = set(out_features) - set(self.stages)
        if unknown:
            raise ValueError(f"out_features has no maps {sorted(unknown)}; choose from {', '.join(self.stages)}")
        last = max(self.stages[name][0] for name in out_features)
        self.features = mobilenet_v2(weights=None).features[: last + 1]
        names = list(self.stages)
        for block in self.features[: self.stages[names[freeze_at - 1]][0] + 1 if freeze_at else 0]:
            block.requires_grad_(False)
        self.features = FrozenBatchNorm2d.convert_frozen_batchnorm(self.features)
        for module in self.features.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.num_batches_tracked = None
        fold_frozen_norms(self.features)
        self._ends = {self.stages[name][0]: name for name in out_features}
        self._out_features = list(out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps by name of images (B, 3, H, W)."""
        outputs = {}
        for index, block in enumerate(self.features):
            x = block(x)
            if index in self._ends:
                outputs[self._ends[index]] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self.stages[name][1], stride=int(name.removeprefix("stride")))
            for name in self._out_features
        }
