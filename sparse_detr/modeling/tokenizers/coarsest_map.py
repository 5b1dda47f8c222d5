"""The coarsest backbone map as tokens, and all maps for later samples (IMFA, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.modeling.tokenizers.multi_scale import map_geometry
from sparse_detr.modeling.tokenizers.single_scale import SingleScaleTokenizer
from sparse_detr.structures import FeatureMaps, ImageSizes, Tokens


class CoarsestMapTokenizer(SingleScaleTokenizer):
    """Projects all backbone maps without normalisation; the coarsest becomes tokens, all stay beside them.

    Args:
        in_channels: channels of the maps, fine to coarse.
        strides: their strides.
        embed_dim: C.
        options: the other arguments of `SingleScaleTokenizer`.
    """

    def __init__(self, *, in_channels: Sequence[int], strides: Sequence[int], embed_dim: int, **options: Any):
        super().__init__(in_channels=in_channels[-1], stride=strides[-1], embed_dim=embed_dim, **options)
        self.strides = tuple(strides)
        self.fine_projections = nn.ModuleList(nn.Conv2d(channels, embed_dim, 1) for channels in in_channels[:-1])

    def forward(self, features: Sequence[Tensor], image_sizes: ImageSizes, padded_size: tuple[int, int]) -> Tokens:
        """Tokenize a batch; see `MultiScaleTokenizer`. `maps` of the tokens are all maps, fine to coarse."""
        *fine, coarsest = features
        tokens = super().forward([coarsest], image_sizes, padded_size)
        projected = [
            project(x).flatten(2).transpose(1, 2) for project, x in zip(self.fine_projections, fine, strict=True)
        ]
        pyramid = map_geometry(features, self.strides, image_sizes, padded_size, padding=self.padding)
        return replace(tokens, maps=FeatureMaps(torch.cat([*projected, tokens.content], 1), pyramid))
