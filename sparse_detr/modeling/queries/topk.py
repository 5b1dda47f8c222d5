"""Queries at the best-scoring proposals of the encoder (Deformable DETR, section 4.2; Sparse DETR, section 3.3)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sparse_detr.modeling.proposals import Proposals, take_rows
from sparse_detr.structures import Queries, at_most


class TopKQueries(nn.Module):
    """Queries at the best-scoring proposals of the encoder.

    Args:
        num_queries: Q; fewer if there are not as many tokens.
        start: content and position of the chosen ones.
        class_agnostic: rank by the first logit, "an object", and train it so, instead of by the best class.
        supervise: train the proposals of `all` tokens, or of the `chosen` ones alone.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        start: nn.Module,
        class_agnostic: bool = False,
        supervise: Literal["all", "chosen"] = "all",
    ):
        super().__init__()
        self.num_queries, self.class_agnostic, self.supervise = num_queries, class_agnostic, supervise
        self.start = start

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Score every token, and turn the best into queries.

        Args:
            memory: (B, N, C), the encoder's output.
            proposals: a box for every token, and the head that scores and refines it.
        """
        projected = proposals.project(memory)
        if self.supervise == "all":
            predictions = proposals.predict(projected)
            chosen = self._choose(predictions.logits, proposals.keep)
            boxes = take_rows(predictions.boxes, chosen)
        else:
            chosen = self._choose(proposals.class_logits(projected), proposals.keep)
            predictions = proposals.predict(take_rows(projected, chosen), chosen)
            boxes = predictions.boxes
        boxes = boxes.detach()
        valid = None if proposals.keep is None else proposals.keep.gather(1, chosen)
        content, position = self.start(take_rows(memory, chosen), take_rows(projected, chosen), boxes)
        group = proposals.group(
            predictions,
            proposals.keep if self.supervise == "all" else valid,
            class_agnostic=self.class_agnostic,
        )
        return Queries(content=content, position=position, reference_points=boxes, valid=valid, proposals=group)

    def _choose(self, logits: Tensor, keep: Tensor | None) -> Tensor:
        """Return (B, Q) long: the tokens of the best (B, N, classes) logits, best first."""
        score = (logits[..., 0] if self.class_agnostic else logits.amax(-1)).detach()
        if keep is not None:
            score = score.masked_fill(~keep, float("-inf"))
        return score.topk(at_most(self.num_queries, score.shape[1]), dim=1).indices
