"""The tokenizer in inference form: positions by row and column, convolutions without copies."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparse_detr.inference.conversion import Conversion, InferenceForm, copied
from sparse_detr.inference.convolution import FoldedConv, can_fold
from sparse_detr.layers.position_encoding import sine_embedding
from sparse_detr.modeling.tokenizers.multi_scale import LevelProjection, MultiScaleTokenizer
from sparse_detr.structures import Pyramid, geometry_dtype


class InferenceLevelProjection(InferenceForm, LevelProjection):
    """`LevelProjection` with a packed convolution."""

    @classmethod
    def of(cls, part: nn.Module, convert: Conversion) -> InferenceLevelProjection | None:
        """Return the form of a `LevelProjection`; None if its convolution cannot be packed."""
        assert isinstance(part, LevelProjection)
        if not can_fold(part.conv, None):
            return None
        return copied(part, cls, convert, conv=FoldedConv(part.conv, None, convert))

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        """Project and normalise; see `LevelProjection`. The result has the dtype of the norm's weights."""
        return self.norm(self.conv(x).to(self.norm.weight.dtype), valid)


class InferenceTokenizer(InferenceForm, MultiScaleTokenizer):
    """`MultiScaleTokenizer` that makes the sine embedding of every row and column once, not of every token."""

    def positions(self, pyramid: Pyramid) -> Tensor:
        """Return (B, N, C); see `MultiScaleTokenizer`."""
        dtype = self.level_embed.dtype
        levels = []
        for level, (height, width) in enumerate(pyramid.spatial_shapes):
            valid = pyramid.valid_sizes[:, level].unbind(-1)
            rows, columns = (
                self._embed_axis(count, number, dtype) for count, number in zip((height, width), valid, strict=True)
            )
            row_end, column_start = self.level_embed[level].chunk(2)
            rows, columns = (rows + row_end)[:, :, None], (columns + column_start)[:, None]
            both = rows.expand(-1, -1, width, -1), columns.expand(-1, height, -1, -1)
            levels.append(torch.cat(both, -1).flatten(1, 2))
        return torch.cat(levels, 1)

    def _embed_axis(self, count: int, valid: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (B, count, C / 2): the embedding of the rows or columns of a level with (B,) `valid` ones.

        The same numbers as `embed_tokens`.
        """
        wide = geometry_dtype(dtype)
        counts = torch.arange(count, device=valid.device).to(wide) + 1 + self.position_offset
        angles = counts / (valid[:, None].to(wide) + 1e-6) * (2 * math.pi)
        return sine_embedding(angles, self.embed_dim // 2, self.position_temperature).to(dtype)
