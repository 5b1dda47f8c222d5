"""Query makers: from encoded tokens to decoder queries."""

from sparse_detr.modeling.queries.anchors import Anchors, FixedCenterAnchors, LearnedAnchors
from sparse_detr.modeling.queries.falling import FallingNumber
from sparse_detr.modeling.queries.learned import LearnedPositions, LearnedQueries
from sparse_detr.modeling.queries.points import GridPoints, LearnedPoints, PatternQueries
from sparse_detr.modeling.queries.topk import BoxStart, LearnedStart, MemoryStart, ProjectedStart, TopKQueries

__all__ = [
    "Anchors",
    "BoxStart",
    "FallingNumber",
    "FixedCenterAnchors",
    "GridPoints",
    "LearnedAnchors",
    "LearnedPoints",
    "LearnedPositions",
    "LearnedQueries",
    "LearnedStart",
    "MemoryStart",
    "PatternQueries",
    "ProjectedStart",
    "TopKQueries",
]
