"""From one backbone map to a sequence of tokens (DETR, section 3.2; DAB-DETR)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparse_detr.layers.position_encoding import sine_embedding
from sparse_detr.modeling.tokenizers.multi_scale import Padding, map_geometry
from sparse_detr.structures import ImageSizes, Pyramid, Tokens, geometry_dtype


class SingleScaleTokenizer(nn.Module):
    """Projects one backbone map without normalisation, flattens it and gives every token its position.

    Args:
        in_channels: channels of the map.
        stride: its stride.
        embed_dim: C.
        padding: see `level_geometry`.
        position_temperature: temperature of the sine embedding (DAB-DETR, section 4.5).
        position_offset: see `embed_tokens`.

    Raises:
        ValueError: the sine embedding cannot fill `embed_dim` channels.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        stride: int,
        embed_dim: int,
        padding: Padding = "exact",
        position_temperature: float = 20.0,
        position_offset: float = 0.0,
    ):
        super().__init__()
        if embed_dim % 4:
            raise ValueError(
                "the position of a token is sine and cosine of its row and of its column, so embed_dim must be a "
                f"multiple of 4, got {embed_dim}"
            )
        self.stride, self.padding = stride, padding
        self.position_temperature, self.position_offset = position_temperature, position_offset
        self.projection = nn.Conv2d(in_channels, embed_dim, 1)

    @property
    def embed_dim(self) -> int:
        """C."""
        return self.projection.out_channels

    @property
    def num_levels(self) -> int:
        """L, which is 1."""
        return 1

    def forward(self, features: Sequence[Tensor], image_sizes: ImageSizes, padded_size: tuple[int, int]) -> Tokens:
        """Tokenize a batch; see `MultiScaleTokenizer`. `features` holds one map."""
        (source,) = features
        pyramid = self.pyramid(features, image_sizes, padded_size)
        content = self.projection(source).flatten(2).transpose(1, 2)
        return Tokens(content=content, position=self._position(pyramid), pyramid=pyramid)

    def pyramid(self, features: Sequence[Tensor], image_sizes: ImageSizes, padded_size: tuple[int, int]) -> Pyramid:
        """Return the geometry of the one level made of `features`."""
        return map_geometry(features, [self.stride], image_sizes, padded_size, padding=self.padding)

    def _position(self, pyramid: Pyramid) -> Tensor:
        """Return the (B, N, C) sine embedding of row and column: valid cells up to the token in its column and row.

        For a valid token it equals `embed_tokens`. Padding has an embedding too, because decoders of
        the public implementations may attend to padding.
        """
        valid = ~pyramid.padding_mask.unflatten(1, pyramid.spatial_shapes[0])
        dtype = self.projection.weight.dtype
        counts = torch.stack([valid.cumsum(1), valid.cumsum(2)], -1).to(geometry_dtype(dtype))
        totals = torch.stack([counts[:, -1:, :, 0].expand_as(valid), counts[:, :, -1:, 1].expand_as(valid)], -1)
        angles = (counts + self.position_offset) / (totals + 1e-6) * (2 * math.pi)
        embedding = sine_embedding(angles, self.embed_dim // 2, self.position_temperature)
        return embedding.flatten(-2).flatten(1, 2).to(dtype)
