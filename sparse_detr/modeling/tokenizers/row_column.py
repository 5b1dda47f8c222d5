"""From one backbone map to tokens with a position for every column and every row (Anchor DETR)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_detr.layers import CoordinateEmbedding
from sparse_detr.modeling.tokenizers.multi_scale import LevelProjection, Padding, map_geometry
from sparse_detr.structures import AxisPositions, ImageSizes, Pyramid, Tokens, geometry_dtype


class RowColumnTokenizer(nn.Module):
    """Projects one backbone map, normalises and flattens it, and gives every column and row its position.

    The position of a token is the sum of those of its column and row, for parts that take no single axis.

    Args:
        in_channels: channels of the map.
        stride: its stride.
        embed_dim: C.
        padding: `exact` keeps padding out of the group normalisation; `released` is the public implementation. See also
            `level_geometry`.
    """

    def __init__(self, *, in_channels: int, stride: int, embed_dim: int, padding: Padding = "exact"):
        super().__init__()
        self.stride, self.padding = stride, padding
        self.projection = LevelProjection(in_channels=in_channels, embed_dim=embed_dim, downsample=False)
        self.embed = CoordinateEmbedding(embed_dim=embed_dim, num_coordinates=1)

    def forward(self, features: Sequence[Tensor], image_sizes: ImageSizes, padded_size: tuple[int, int]) -> Tokens:
        """Tokenize a batch; see `MultiScaleTokenizer`. `features` holds one map."""
        (source,) = features
        pyramid = map_geometry(features, [self.stride], image_sizes, padded_size, padding=self.padding)
        masked = self.padding == "exact" and pyramid.has_padding
        valid = ~pyramid.padding_mask.unflatten(1, pyramid.spatial_shapes[0]) if masked else None
        content = self.projection(source, valid).flatten(2).transpose(1, 2)
        x, y = (self.embed(centers) for centers in axis_centers(pyramid, content.dtype))
        position = (y[:, :, None] + x[:, None]).flatten(1, 2)
        return Tokens(content=content, position=position, pyramid=pyramid, axes=AxisPositions(x, y, self.embed))


def axis_centers(pyramid: Pyramid, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the centres of the columns (B, w) and rows (B, h) of one level, in [0, 1] of the unpadded image.

    Those of padding are the centre of the last valid column or row. In `geometry_dtype` of `dtype`.
    """
    (height, width), (valid_height, valid_width) = pyramid.spatial_shapes[0], pyramid.valid_sizes[:, 0].unbind(-1)
    return _centers(width, valid_width, dtype), _centers(height, valid_height, dtype)


def _centers(count: int, valid: Tensor, dtype: torch.dtype) -> Tensor:
    valid = valid[:, None]
    cells = torch.arange(count, device=valid.device)[None].minimum(valid - 1)
    return (cells.to(geometry_dtype(dtype)) + 0.5) / valid
