"""Queries at the best-scoring proposals of the encoder (Deformable DETR, section 4.2; Sparse DETR, section 3.3).

A start is a module that makes the content and position of the chosen queries. It takes the chosen tokens of the memory
(B, Q, C), the same tokens after the proposal projection, and their detached boxes (B, Q, 4), cxcywh in [0, 1]. It
returns the content (B, Q, C) and the position (B, Q, C), or None if the decoder derives the position from the boxes.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sparse_detr.layers import embed_boxes
from sparse_detr.modeling.heads import Proposals, take_rows
from sparse_detr.structures import Queries, at_most


class TopKQueries(nn.Module):
    """Queries at the best-scoring proposals of the encoder.

    Args:
        num_queries: Q; all tokens if there are fewer.
        start: makes the content and position of the chosen queries.
        class_agnostic: rank tokens by the first logit and train it as "an object", instead of by the best class.
        supervise: train the proposals of `all` tokens, or of the `chosen` ones only.
        training_number: returns the number of queries in training mode; None for `num_queries`.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        start: nn.Module,
        class_agnostic: bool = False,
        supervise: Literal["all", "chosen"] = "all",
        training_number: nn.Module | None = None,
    ):
        super().__init__()
        self.num_queries, self.class_agnostic, self.supervise = num_queries, class_agnostic, supervise
        self.start, self.training_number = start, training_number

    def forward(self, memory: Tensor, proposals: Proposals) -> Queries:
        """Score every token and turn the best tokens into queries.

        Args:
            memory: (B, N, C), the encoder's output.
            proposals: a box for every token, and the head that scores and refines the boxes.
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
        """Return (B, Q) long: the tokens with the best (B, N, classes) logits, best first."""
        score = (logits[..., 0] if self.class_agnostic else logits.amax(-1)).detach()
        if keep is not None:
            score = score.masked_fill(~keep, float("-inf"))
        number = self.num_queries
        if self.training and self.training_number is not None:
            number = self.training_number()
        return score.topk(at_most(number, score.shape[1]), dim=1).indices


class BoxEmbeddingProjection(nn.Module):
    """Linear layer and layer normalisation of the sine embedding of a box.

    Args:
        embed_dim: C.
        out_dim: channels of the result.
    """

    def __init__(self, *, embed_dim: int, out_dim: int):
        super().__init__()
        self.num_features = embed_dim // 2
        self.linear = nn.Linear(2 * embed_dim, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, boxes: Tensor) -> Tensor:
        """Return (B, Q, out_dim) of (B, Q, 4) boxes."""
        return self.norm(self.linear(embed_boxes(boxes, self.num_features, dtype=self.linear.weight.dtype)))


class BoxStart(nn.Module):
    """A start with content and position from the sine embedding of the box (Deformable DETR, two-stage).

    Args:
        embed_dim: C.
    """

    def __init__(self, *, embed_dim: int):
        super().__init__()
        self.position_projection = BoxEmbeddingProjection(embed_dim=embed_dim, out_dim=2 * embed_dim)

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        position, content = self.position_projection(boxes).chunk(2, -1)
        return content, position


class MemoryStart(nn.Module):
    """A start with the encoded token as content, and the position from its box (Efficient DETR, Sparse DETR).

    Args:
        embed_dim: C.
        detach_content: pass no gradient from the queries' content to the encoder.
    """

    def __init__(self, *, embed_dim: int, detach_content: bool = False):
        super().__init__()
        self.detach_content = detach_content
        self.position_projection = BoxEmbeddingProjection(embed_dim=embed_dim, out_dim=embed_dim)

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        return memory.detach() if self.detach_content else memory, self.position_projection(boxes)


class ProjectedStart(nn.Module):
    """A start with the projected, detached token as content, and no position (DAB-Deformable-DETR, two-stage)."""

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        return projected.detach(), None


class LearnedStart(nn.Module):
    """A start with learned content, the same for every image: mixed query selection (DINO, section 3.4).

    Args:
        num_queries: Q.
        embed_dim: C.
    """

    def __init__(self, *, num_queries: int, embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, embed_dim)
        nn.init.xavier_uniform_(self.embedding.weight)

    def forward(self, memory: Tensor, projected: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.embedding.weight[: boxes.shape[1]].expand(boxes.shape[0], -1, -1), None
