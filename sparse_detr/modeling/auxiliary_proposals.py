"""Proposals for models whose queries do not come from any."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.queries import ProposalProjection, Proposals, Queries
from sparse_detr.structures import PredictionGroup


class AuxiliaryProposals(nn.Module):
    """Queries of another kind, and beside them a prediction for every encoded token, supervised like any other.

    So a proposal head learns to classify tokens where the queries have no use for it.

    Args:
        queries: the queries, with learned references.
    """

    def __init__(self, *, queries: nn.Module):
        super().__init__()
        self.queries = queries

    def forward(
        self, memory: Tensor, *, proposals: Proposals, projection: ProposalProjection, head: PredictionHead
    ) -> Queries:
        queries: Queries = self.queries(memory, proposals=proposals, projection=projection, head=head)
        predictions = head(projection(memory, proposals), proposals.box_logits)
        valid = None if proposals.excluded is None else ~proposals.excluded
        group = PredictionGroup("proposals", "_enc", predictions.logits, predictions.boxes, valid)
        return replace(queries, proposals=group)
