"""Find out from a converted file what model it needs."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from sparse_detr.checkpoint.coco_classes import count_class_rows
from sparse_detr.checkpoint.layouts import Layout
from sparse_detr.checkpoint.match import equal_values
from sparse_detr.checkpoint.name_maps import count_indices

QueryStart = Literal["anchors", "embedding", "learned", "box", "memory", "tokens"]

# blocks of the third stage of a ResNet, and whether they are bottlenecks
RESNETS = {(2, False): 18, (6, False): 34, (6, True): 50, (23, True): 101, (36, True): 152}
# width of the patch embedding and blocks of the third stage of a DAT and a Swin
DATS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base"}
SWINS = {(96, 6): "tiny", (96, 18): "small", (128, 18): "base", (192, 18): "large"}


@dataclass(frozen=True)
class Evidence:
    """The weights of a file and all else in it that tells about the model.

    Args:
        weights: entries under our names.
        public_names: all names in the file.
        trained_with: the command-line arguments of the training, if the file holds them.
        layout: how the file names its entries.
        also_holds: other sets of weights in the file.
    """

    weights: Mapping[str, Tensor]
    public_names: Collection[str]
    trained_with: Mapping[str, Any]
    layout: Layout
    also_holds: tuple[str, ...] = ()

    def has(self, prefix: str) -> bool:
        """Return whether the name of an entry starts with `prefix`."""
        return any(name.startswith(prefix) for name in self.weights)

    def rows(self, name: str) -> int | None:
        """Return the number of rows of an entry; None if it is missing."""
        return len(self.weights[name]) if name in self.weights else None

    @property
    def num_classes(self) -> int | None:
        """Return the number of classes, without "no object"; None without a class head."""
        rows = count_class_rows(self.weights)
        return rows - 1 if rows is not None and self.layout.no_object else rows

    def layers(self, stack: str) -> int:
        """Return the number of layers of the `encoder` or the `decoder`."""
        return count_indices(self.weights, rf"{stack}\.layers\.(\d+)\.")

    @property
    def narrow_layers(self) -> int:
        """Return the number of encoder layers with a narrow feed-forward network for tokens of fine levels."""
        return count_indices(self.weights, r"encoder\.layers\.(\d+)\.fine_ffn\.")

    @property
    def num_levels(self) -> int | None:
        """Return the number of levels of tokens; None without deformable attention, or for backbone weights."""
        return self.rows("tokenizer.level_embed")

    @property
    def is_backbone(self) -> bool:
        """Return whether the file holds a backbone alone."""
        return not self.has("decoder.")

    @cached_property
    def start(self) -> QueryStart:
        """Return where queries come from.

        `anchors`: learned boxes. `embedding`: learned vectors. Else from the best proposals, with a content that is
        learned (`learned`), computed from the box (`box`), the encoded token (`memory`) or the projected token
        (`tokens`).
        """
        if self.has("queries.anchors."):
            return "anchors"
        if self.has("queries.start.embedding."):
            return "learned"
        projection = self.weights.get("queries.start.position_projection.linear.weight")
        if projection is not None:  # its C outputs are the position of a query; 2C are position and content
            return "memory" if len(projection) == projection.shape[1] // 2 else "box"
        return "tokens" if self.has("proposal_head.") else "embedding"

    @property
    def binary_proposals(self) -> bool:
        """Return whether row 0 of the proposal head means "foreground" and not a class.

        The saved arguments say it. Without them: proposals are class-specific where queries start from the memory,
        since public files of the Sparse DETR repository have both of its efficient options or neither.
        """
        if self.start not in ("box", "memory"):
            return False
        return not self.trained_with.get("eff_specific_head", self.start == "memory")

    @cached_property
    def heads_are_tied(self) -> bool:
        """Return whether all decoder layers have equal heads."""
        heads = [name for name in self.weights if name.startswith("decoder_heads.")]
        return all(self._equals_first_head(name) for name in heads)

    def _equals_first_head(self, name: str) -> bool:
        first = self.weights.get(re.sub(r"^decoder_heads\.\d+", "decoder_heads.0", name))
        value = self.weights[name]
        return first is not None and first.shape == value.shape and equal_values(first, value)

    @property
    def is_dilated(self) -> bool | None:
        """Return whether the last stage of the ResNet is dilated (DC5); None if the file does not show it.

        The arguments of the training say it, or the caller. In detrex only the dilated ResNet is torchvision's, in a
        wrapper; but in its Anchor DETR every ResNet is. The authors' PnP-DETR has 30 pooled tokens, with DC5 100.
        """
        if "dilation" in self.trained_with:
            return bool(self.trained_with["dilation"])
        if self.layout.name == "pnp_detr":
            return {30: False, 100: True}.get(self.rows("selector.pool.weight_proj.bias") or 0)
        if self.layout.origin == "detrex":
            return None if self.layout.name == "detrex_anchor_detr" else self._is_torchvisions
        return None

    @property
    def _is_torchvisions(self) -> bool:
        """Return whether the backbone is torchvision's ResNet, in a wrapper."""
        return any(name.startswith("backbone.body.") for name in self.public_names)

    @property
    def depth(self) -> int | None:
        """Return the depth of the ResNet; None for any other backbone."""
        blocks = count_indices(self.weights, r"backbone\.res4\.(\d+)\.")
        return RESNETS.get((blocks, self.has("backbone.res4.0.conv3.")))

    @property
    def can_be_dilated(self) -> bool:
        """Return whether the backbone is a ResNet of bottlenecks."""
        return self.depth is not None and self.has("backbone.res4.0.conv3.")

    @property
    def backbone(self) -> str | None:
        """Return the backbone as a call of a function of `sparse_detr.recipes`; None if it is unknown."""
        if (patches := self.rows("backbone.patch_embed.proj.weight")) is not None:
            return self._swin(patches)
        if (patches := self.rows("backbone.patch_proj.0.weight")) is not None:
            return self._dat(patches)
        return None if self.depth is None else self._resnet(self.depth)

    def _resnet(self, depth: int) -> str:
        options = {}
        if self.layout.origin == "detrex" and not self._is_torchvisions:
            options["freeze_at"] = 1
        if self._num_maps not in (3, None):
            options["num_maps"] = self._num_maps
        if self.is_dilated and self.can_be_dilated:
            options["dilation"] = True
        return backbone_call("resnet", depth, options)

    def _swin(self, patches: int) -> str | None:
        size = SWINS.get((patches, count_indices(self.weights, r"backbone\.layers\.2\.blocks\.(\d+)\.")))
        if size is None:
            return None
        if self.layout.name in ("sparse_detr", "deformable_detr") and size == "tiny":
            return "swin_tiny()"
        options = {}
        offsets = self.rows("backbone.layers.0.blocks.0.attn.relative_position_bias_table")
        if offsets is not None and (window := (math.isqrt(offsets) + 1) // 2) != 7:
            options["image_size"] = 32 * window
        if self._num_maps not in (3, None):
            options["num_maps"] = self._num_maps
        return backbone_call("swin", size, options)

    def _dat(self, patches: int) -> str | None:
        size = DATS.get((patches, count_indices(self.weights, r"backbone\.stages\.2\.attns\.(\d+)\.")))
        offsets = self.rows("backbone.stages.0.attns.0.relative_position_bias_table")
        if size is None or offsets is None:
            return None
        window = (math.isqrt(offsets) + 1) // 2
        return backbone_call("dat", size, {} if window == 7 else {"image_size": 32 * window})

    @property
    def _num_maps(self) -> int | None:
        """Return the number of maps from the backbone, which are those with a 1x1 convolution."""
        if self.has("tokenizer.projection."):
            return 1 + count_indices(self.weights, r"tokenizer\.fine_projections\.(\d+)\.")
        kernels = [
            value.shape[-1]
            for name, value in self.weights.items()
            if re.fullmatch(r"tokenizer\.projections\.\d+\.conv\.weight", name)
        ]
        return kernels.count(1) or None


def backbone_call(function: str, first: Any, options: Mapping[str, Any]) -> str:
    """Return the text of a call of a recipe of a backbone, such as `resnet(50, num_maps=1)`."""
    shown = f'"{first}"' if isinstance(first, str) else str(first)
    return f"{function}({', '.join([shown, *(f'{name}={value!r}' for name, value in options.items())])})"
