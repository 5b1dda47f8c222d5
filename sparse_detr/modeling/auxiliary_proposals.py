"""Proposals for models whose queries do not come from any."""

from __future__ import annotations

from torch import Tensor, nn

from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.queries import ProposalProjection, Proposals
from sparse_detr.structures import PredictionGroup


class NoAuxiliaryProposals(nn.Module):
    """The queries have all the proposals that there are."""

    def forward(
        self,
        memory: Tensor,
        *,
        proposals: Proposals,
        projection: ProposalProjection | None,
        head: PredictionHead | None,
    ) -> PredictionGroup | None:
        return None


class AuxiliaryProposals(nn.Module):
    """A prediction for every encoded token, supervised like any other and used for nothing else.

    So a proposal head learns to classify tokens where the queries have no use for it; inference does without.
    """

    def forward(
        self, memory: Tensor, *, proposals: Proposals, projection: ProposalProjection, head: PredictionHead
    ) -> PredictionGroup | None:
        """Predictions of the (B, N, C) memory."""
        predictions = head(projection(memory, proposals), proposals.box_logits)
        valid = None if proposals.excluded is None else ~proposals.excluded
        return PredictionGroup("proposals", "_enc", predictions.logits, predictions.boxes, valid)
