"""Frozen records that the parts of a detector hand to each other."""

from sparse_detr.structures.outputs import DetectorOutput, PredictionGroup, Targets
from sparse_detr.structures.pyramid import Pyramid, Tokens, geometry_dtype
from sparse_detr.structures.selection import AllTokens, CascadedTokens, TokenSelection, TopKTokens

__all__ = [
    "AllTokens",
    "CascadedTokens",
    "DetectorOutput",
    "PredictionGroup",
    "Pyramid",
    "Targets",
    "TokenSelection",
    "Tokens",
    "TopKTokens",
    "geometry_dtype",
]
