"""The decoder in inference form: predictions of a layer are made where something reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sparse_detr.inference.conversion import InferenceForm
from sparse_detr.layers import inverse_sigmoid
from sparse_detr.modeling.decoder import Decoder, DecoderOutput
from sparse_detr.modeling.heads import PredictionHead, Predictions
from sparse_detr.structures import Queries, Tokens


class PredictionsOnDemand:
    """`Predictions` that are made when they are read: the refinement of boxes needs no classes, or nothing at all.

    Args:
        head: the head.
        norm: the normalisation in front of it.
        content: (B, Q, C).
        reference_logits: see `PredictionHead`.
    """

    def __init__(self, head: Any, norm: nn.Module, content: Tensor, reference_logits: Tensor):
        self.head, self.norm, self.content, self.reference_logits = head, norm, content, reference_logits

    @property
    def logits(self) -> Tensor:
        """(B, Q, classes) before the sigmoid."""
        return self.made().logits

    @property
    def box_logits(self) -> Tensor:
        """(B, Q, 4) cxcywh before the sigmoid."""
        return self.head.box_logits(self.norm(self.content), self.reference_logits)

    @property
    def boxes(self) -> Tensor:
        """(B, Q, 4) cxcywh in [0, 1]."""
        return self.box_logits.sigmoid()

    def made(self) -> Predictions:
        """Return all predictions."""
        return self.head(self.norm(self.content), self.reference_logits)


class InferenceDecoder(InferenceForm, Decoder):
    """`Decoder` that returns the predictions of its last layer alone."""

    def forward(
        self,
        queries: Queries,
        memory: Tokens,
        heads: Sequence[PredictionHead] | nn.ModuleList,
        *,
        need_samples: bool = False,
        num_layers: int | None = None,
    ) -> DecoderOutput:
        """Decode queries; see `Decoder`."""
        output = super().forward(queries, memory, heads, need_samples=need_samples, num_layers=num_layers)
        last: Any = output.predictions[-1]
        return DecoderOutput(predictions=(last.made(),), samples=output.samples)

    def predict(self, head: nn.Module, content: Tensor, anchor: Tensor) -> Predictions:
        """Return the predictions of a layer, to be made when they are read."""
        made: Any = PredictionsOnDemand(head, self.norm, content, inverse_sigmoid(anchor, self.logit_eps))
        return made
