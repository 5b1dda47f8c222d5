"""Proposals for models whose queries do not come from proposals."""

from __future__ import annotations

from torch import Tensor, nn

from sparse_detr.modeling.heads import Proposals
from sparse_detr.structures import PredictionGroup


class NoAuxiliaryProposals(nn.Module):
    """No proposals besides those of the queries."""

    def forward(self, memory: Tensor, proposals: Proposals) -> PredictionGroup | None:
        """Return None."""
        return None


class AuxiliaryProposals(nn.Module):
    """Predictions of the proposal head for every encoded token, for supervision only.

    They train the proposal head to classify tokens in models whose queries do not need it. Inference does not run them.
    """

    def forward(self, memory: Tensor, proposals: Proposals) -> PredictionGroup | None:
        """Return the predictions of the (B, N, C) memory."""
        return proposals.group(proposals.predict(proposals.project(memory)), proposals.keep)
