"""Frozen dataclasses that the parts of a detector exchange."""

from sparse_detr.structures.outputs import DetectorOutput, PredictionGroup, Targets
from sparse_detr.structures.pyramid import (
    AxisPositions,
    FeatureMaps,
    ImageSizes,
    Pyramid,
    Tokens,
    at_most,
    check_image_sizes,
    geometry_dtype,
    map_size,
)
from sparse_detr.structures.queries import Denoising, Queries
from sparse_detr.structures.selection import (
    AllTokens,
    CascadedTokens,
    CoarseTokens,
    PolledTokens,
    TokenSelection,
    TopKTokens,
    full_layers,
    top_token_cascade,
    top_tokens,
)

__all__ = [
    "AllTokens",
    "AxisPositions",
    "CascadedTokens",
    "CoarseTokens",
    "Denoising",
    "DetectorOutput",
    "FeatureMaps",
    "ImageSizes",
    "PolledTokens",
    "PredictionGroup",
    "Pyramid",
    "Queries",
    "Targets",
    "TokenSelection",
    "Tokens",
    "TopKTokens",
    "at_most",
    "check_image_sizes",
    "full_layers",
    "geometry_dtype",
    "map_size",
    "top_token_cascade",
    "top_tokens",
]
