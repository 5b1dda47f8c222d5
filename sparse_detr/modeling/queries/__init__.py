"""From encoded tokens to decoder queries."""

from sparse_detr.modeling.queries.initializers import LearnedQueries, Queries, TopKQueries
from sparse_detr.modeling.queries.proposals import ProposalGenerator, ProposalProjection, Proposals

__all__ = ["LearnedQueries", "ProposalGenerator", "ProposalProjection", "Proposals", "Queries", "TopKQueries"]
