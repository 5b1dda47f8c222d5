"""Tokenizers: from backbone maps to one sequence of tokens."""

from sparse_detr.modeling.tokenizers.coarsest_map import CoarsestMapTokenizer
from sparse_detr.modeling.tokenizers.multi_scale import MultiScaleTokenizer, level_geometry
from sparse_detr.modeling.tokenizers.row_column import RowColumnTokenizer
from sparse_detr.modeling.tokenizers.single_scale import SingleScaleTokenizer

__all__ = [
    "CoarsestMapTokenizer",
    "MultiScaleTokenizer",
    "RowColumnTokenizer",
    "SingleScaleTokenizer",
    "level_geometry",
]
