"""Where the decoder's queries come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import embed_boxes
from sparse_detr.modeling.heads import PredictionHead
from sparse_detr.modeling.queries.proposals import ProposalProjection, Proposals
from sparse_detr.structures import PredictionGroup


@dataclass(frozen=True, eq=False)
class Queries:
    """What the decoder starts from.

    Args:
        content: (B, Q, C).
        position: (B, Q, C), added wherever a query attends.
        reference_points: (B, Q, 2) points or (B, Q, 4) boxes cxcywh, in [0, 1] of the unpadded image.
        valid: (B, Q) bool, False on queries that only fill the batch; None where every query counts.
        proposals: the supervised predictions that the queries were chosen from.
    """

    content: Tensor
    position: Tensor
    reference_points: Tensor
    valid: Tensor | None = None
    proposals: PredictionGroup | None = None


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
        # Under autocast the layer gives half precision; points of an image need more than its 8 or 11 bits.
        points = self.reference_points(position).to(position.dtype).sigmoid()
        return Queries(content=content, position=position, reference_points=points)


class TopKQueries(nn.Module):
    """Queries at the best-scoring proposals of the encoder.

    Args:
        num_queries: Q; fewer if there are not as many tokens.
        embed_dim: C.
        content: `projected`: position and content both come from the sine embedding of the proposal's box (Deformable
            DETR, two-stage); `memory`: the content is the encoded token itself (Efficient DETR, Sparse DETR).
        class_agnostic: rank by the first logit, "an object", and train it so, instead of by the best class.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        embed_dim: int,
        content: Literal["projected", "memory"] = "memory",
        class_agnostic: bool = False,
    ):
        super().__init__()
        self.num_queries, self.embed_dim = num_queries, embed_dim
        self.content, self.class_agnostic = content, class_agnostic
        self.position_projection = BoxEmbeddingProjection(
            embed_dim=embed_dim, out_dim=embed_dim * (2 if content == "projected" else 1)
        )

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
        predictions = head(projection(memory, proposals), proposals.box_logits)
        counted = None if proposals.excluded is None else ~proposals.excluded
        score = (predictions.logits[..., 0] if self.class_agnostic else predictions.logits.amax(-1)).detach()
        if counted is not None:
            score = score.masked_fill(~counted, float("-inf"))
        chosen = score.topk(min(self.num_queries, score.shape[1]), dim=1).indices
        boxes = _take(predictions.box_logits, chosen).detach().sigmoid()
        position = self.position_projection(embed_boxes(boxes, self.embed_dim // 2))
        if self.content == "projected":
            position, content = position.chunk(2, -1)
        else:
            content = _take(memory, chosen)
        group = PredictionGroup(
            name="proposals",
            suffix="_enc",
            logits=predictions.logits,
            boxes=predictions.boxes,
            valid=counted,
            class_agnostic=self.class_agnostic,
        )
        return Queries(
            content=content,
            position=position,
            reference_points=boxes,
            valid=None if counted is None else counted.gather(1, chosen),
            proposals=group,
        )


class BoxEmbeddingProjection(nn.Module):
    """Linear layer and layer normalisation of a box's sine embedding (B, Q, 2C).

    Args:
        embed_dim: C.
        out_dim: channels of the result.
    """

    def __init__(self, *, embed_dim: int, out_dim: int):
        super().__init__()
        self.linear = nn.Linear(2 * embed_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, embedding: Tensor) -> Tensor:
        return self.norm(self.linear(embedding))


def _take(x: Tensor, indices: Tensor) -> Tensor:
    """Rows (B, Q, C) of (B, N, C)."""
    return torch.gather(x, 1, indices[..., None].expand(-1, -1, x.shape[-1]))
