"""Query makers: from encoded tokens to decoder queries."""

from sparse_detr.modeling.queries.anchors import Anchors, FixedCenterAnchors, LearnedAnchors
from sparse_detr.modeling.queries.learned import LearnedPositions, LearnedQueries
from sparse_detr.modeling.queries.topk import BoxStart, LearnedStart, MemoryStart, ProjectedStart, TopKQueries

__all__ = [
    "Anchors",
    "BoxStart",
    "FixedCenterAnchors",
    "LearnedAnchors",
    "LearnedPositions",
    "LearnedQueries",
    "LearnedStart",
    "MemoryStart",
    "ProjectedStart",
    "TopKQueries",
]
