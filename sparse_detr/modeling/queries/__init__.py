"""From encoded tokens to decoder queries."""

from sparse_detr.modeling.queries.anchors import Anchors, FixedCenterAnchors, LearnedAnchors
from sparse_detr.modeling.queries.learned import LearnedQueries
from sparse_detr.modeling.queries.starts import BoxStart, LearnedStart, MemoryStart, ProjectedStart
from sparse_detr.modeling.queries.topk import TopKQueries

__all__ = [
    "Anchors",
    "BoxStart",
    "FixedCenterAnchors",
    "LearnedAnchors",
    "LearnedQueries",
    "LearnedStart",
    "MemoryStart",
    "ProjectedStart",
    "TopKQueries",
]
