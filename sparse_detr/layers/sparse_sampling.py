"""Sparse features from all scales, sampled around promising boxes (IMFA, Zhang et al., CVPR 2023, section 3.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers.blocks import MLP
from sparse_detr.layers.position_encoding import sine_embedding
from sparse_detr.ops import multi_scale_deformable_attention
from sparse_detr.structures import FeatureMaps


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Features at P points of each of n boxes, those of a box one after the other.

    Args:
        content: (B, n P, C).
        position: (B, n P, C), sine embedding of the points.
        points: (B, n P, 2), (x, y) in [0, 1] of the unpadded image; they may lie outside of it.
    """

    content: Tensor
    position: Tensor
    points: Tensor


class DynamicMixing(nn.Module):
    """Two linear maps of the channels of features; the weights are made from the query that sampled the features.

    Args:
        embed_dim: C.
        hidden_dim: channels in between.
    """

    def __init__(self, *, embed_dim: int, hidden_dim: int):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.weights = nn.Linear(embed_dim, 2 * embed_dim * hidden_dim)
        self.hidden_norm, self.norm = nn.LayerNorm(hidden_dim), nn.LayerNorm(embed_dim)

    def forward(self, features: Tensor, query: Tensor) -> Tensor:
        """Return the new features (B, n, P, C) from (B, n, P, C) and their queries (B, n, C)."""
        reduce, expand = self.weights(query).chunk(2, -1)
        hidden = self.hidden_norm(features @ reduce.unflatten(-1, (-1, self.hidden_dim))).relu()
        return self.norm(hidden @ expand.unflatten(-1, (self.hidden_dim, -1)))


class FeatureSampler(nn.Module):
    """P points around the box of a query, where all maps are read; the query weights the maps and mixes the channels.

    A point lies at most one width and one height away from the centre of the box.

    Args:
        embed_dim: C.
        num_levels: L, number of maps.
        num_points: P.
        mixing_dim: see `DynamicMixing.hidden_dim`.
        position_temperature: temperature of the sine embedding of the points.
        map_padding: `hidden`: padding reads as zero; `visible`: points near the border of an image read its padding,
            as in the public code.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        num_levels: int,
        num_points: int = 8,
        mixing_dim: int = 64,
        position_temperature: float = 20.0,
        map_padding: Literal["hidden", "visible"] = "hidden",
    ):
        super().__init__()
        self.num_points, self.map_padding = num_points, map_padding
        self.position_temperature = position_temperature
        self.sampling = MLP(sizes=(embed_dim, embed_dim, num_points * (2 + num_levels)))
        self.level_embed = nn.Parameter(torch.empty(num_levels, embed_dim))
        self.mixing = DynamicMixing(embed_dim=embed_dim, hidden_dim=mixing_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise: every point lies at the centre of its box and reads all maps alike."""
        nn.init.zeros_(self.sampling.linears[-1].weight)
        nn.init.zeros_(self.sampling.linears[-1].bias)
        nn.init.normal_(self.level_embed)

    def forward(self, query: Tensor, boxes: Tensor, maps: FeatureMaps) -> SparseFeatures:
        """Sample and mix.

        Args:
            query: (B, n, C), content of the queries.
            boxes: (B, n, 4), their boxes, cxcywh in [0, 1] of the unpadded image.
            maps: L maps.
        """
        numbers = self.sampling(query).unflatten(-1, (self.num_points, -1))  # (B, n, P, 2 + L)
        offsets, level_weights = numbers[..., :2].to(boxes.dtype).tanh(), numbers[..., 2:].softmax(-1)
        points = boxes[..., None, :2] + boxes[..., None, 2:] * offsets
        features = self._read(maps, points.flatten(1, 2), level_weights.flatten(1, 2))
        content = self.mixing(features.unflatten(1, points.shape[1:3]), query)
        angles = points.flip(-1) * (2 * math.pi)  # row before column, as for tokens
        position = sine_embedding(angles, query.shape[-1] // 2, self.position_temperature).flatten(-2)
        return SparseFeatures(content.flatten(1, 2), position.to(query.dtype).flatten(1, 2), points.flatten(1, 2))

    def _read(self, maps: FeatureMaps, points: Tensor, level_weights: Tensor) -> Tensor:
        """Return (B, S, C): the weighted sum of all maps at points (B, S, 2), with weights (B, S, L)."""
        pyramid = maps.pyramid
        locations = points[:, :, None] * pyramid.valid_ratios(points.dtype)[:, None]  # (B, S, L, 2)
        hidden = self.map_padding == "hidden" and pyramid.has_padding
        # Deformable attention with one head and one point a level is this sum.
        features = multi_scale_deformable_attention(
            maps.content[:, :, None],
            pyramid.spatial_shapes,
            locations[:, :, None, :, None],
            level_weights[:, :, None, :, None],
            padding_mask=pyramid.padding_mask if hidden else None,
        )
        return features + level_weights @ self.level_embed
