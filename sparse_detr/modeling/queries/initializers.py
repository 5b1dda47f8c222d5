"""Where the decoder's queries come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.queries.proposals import ProposalProjection, Proposals
from sparse_detr.structures import PredictionGroup, geometry_dtype


@dataclass(frozen=True, eq=False)
class Denoising:
    """The queries in front that start from noisy true boxes.

    Args:
        num_queries: how many they are.
        matches: for every image the rows and the true boxes that belong together, two long tensors of equal length.
        repeats: how many of them stand for one true box.
    """

    num_queries: int
    matches: Sequence[tuple[Tensor, Tensor]]
    repeats: int


@dataclass(frozen=True, eq=False)
class Queries:
    """What the decoder starts from.

    Args:
        content: (B, Q, C).
        position: (B, Q, C), added wherever a query attends; None where the decoder derives it from the references.
        reference_points: (B, Q, 2) points or (B, Q, 4) boxes cxcywh, in [0, 1] of the unpadded image.
        valid: (B, Q) bool, False on queries that only fill the batch; None where every query counts.
        proposals: the supervised predictions that the queries were chosen from.
        attention_mask: (Q, Q) bool, True where the query of the row must not attend to that of the column; None where
            all see all.
        denoising: which of the queries are denoising queries; None for none.
    """

    content: Tensor
    position: Tensor | None
    reference_points: Tensor
    valid: Tensor | None = None
    proposals: PredictionGroup | None = None
    attention_mask: Tensor | None = None
    denoising: Denoising | None = None

    @property
    def num_denoising(self) -> int:
        """How many of the queries, in front, are denoising queries."""
        return 0 if self.denoising is None else self.denoising.num_queries


class LearnedQueries(nn.Module):
    """The same learned queries for every image, each with a reference point (Deformable DETR, section 4.1).

    Args:
        num_queries: Q.
        embed_dim: C.
    """

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * embed_dim)
        self.reference_points = nn.Linear(embed_dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(
        self,
        memory: Tensor,
        *,
        proposals: Proposals | None,
        projection: ProposalProjection | None,
        head: PredictionHead | None,
    ) -> Queries:
        """Repeat the queries for every image; only the batch size of `memory` matters."""
        position, content = self.embedding.weight.expand(memory.shape[0], -1, -1).chunk(2, -1)
        points = self.reference_points(position).to(geometry_dtype(position.dtype)).sigmoid()
        return Queries(content=content, position=position, reference_points=points)


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

    def forward(
        self,
        memory: Tensor,
        *,
        proposals: Proposals,
        projection: ProposalProjection,
        head: PredictionHead,
    ) -> Queries:
        """Score every token, and turn the best into queries.

        Args:
            memory: (B, N, C), the encoder's output.
            proposals: a box a token.
            projection: what the head reads tokens through.
            head: the head that scores and refines proposals.
        """
        projected = projection(memory, proposals)
        counted = None if proposals.excluded is None else ~proposals.excluded
        if self.supervise == "all":
            predictions = head(projected, proposals.box_logits)
            chosen = self._choose(predictions.logits, counted)
            boxes = _take(predictions.boxes, chosen)
        else:
            with torch.autocast(memory.device.type, enabled=False):  # half-precision scores would be full of ties
                chosen = self._choose(head.class_embed(projected.to(head.class_embed.weight.dtype)), counted)
            predictions = head(_take(projected, chosen), _take(proposals.box_logits, chosen))
            boxes = predictions.boxes
        boxes = boxes.detach()
        valid = None if counted is None else counted.gather(1, chosen)
        content, position = self.start(_take(memory, chosen), _take(projected, chosen), boxes)
        group = PredictionGroup(
            name="proposals",
            suffix="_enc",
            logits=predictions.logits,
            boxes=predictions.boxes,
            valid=counted if self.supervise == "all" else valid,
            class_agnostic=self.class_agnostic,
        )
        return Queries(content=content, position=position, reference_points=boxes, valid=valid, proposals=group)

    def _choose(self, logits: Tensor, counted: Tensor | None) -> Tensor:
        """(B, Q) long: the tokens of the best (B, N, classes) logits, best first."""
        score = (logits[..., 0] if self.class_agnostic else logits.amax(-1)).detach()
        if counted is not None:
            score = score.masked_fill(~counted, float("-inf"))
        return score.topk(min(self.num_queries, score.shape[1]), dim=1).indices


def _take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, Q, C) of (B, N, C)."""
    return torch.gather(x, 1, indices[..., None].expand(-1, -1, x.shape[-1]))
