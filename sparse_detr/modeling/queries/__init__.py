"""From encoded tokens to decoder queries."""

from sparse_detr.modeling.queries.initializers import Denoising, LearnedQueries, Queries, TopKQueries
from sparse_detr.modeling.queries.proposals import ProposalGenerator, ProposalProjection, Proposals
from sparse_detr.modeling.queries.starts import BoxStart, LearnedStart, MemoryStart, ProjectedStart

__all__ = [
    "BoxStart",
    "Denoising",
    "LearnedQueries",
    "LearnedStart",
    "MemoryStart",
    "ProjectedStart",
    "ProposalGenerator",
    "ProposalProjection",
    "Proposals",
    "Queries",
    "TopKQueries",
]
