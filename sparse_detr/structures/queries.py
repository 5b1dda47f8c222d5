"""What the decoder starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sparse_detr.structures.outputs import PredictionGroup


@dataclass(frozen=True, eq=False)
class Denoising:
    """The queries in front that start from noised true boxes.

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
        proposals: the supervised predictions that the queries were chosen from; None for learned queries.
        keep: (Q, Q) bool, True where the query of the row may attend to that of the column; None where all may.
        denoising: which of the queries are denoising queries; None where there are no such queries.
    """

    content: Tensor
    position: Tensor | None
    reference_points: Tensor
    valid: Tensor | None = None
    proposals: PredictionGroup | None = None
    keep: Tensor | None = None
    denoising: Denoising | None = None

    @property
    def num_denoising(self) -> int:
        """How many of the queries, in front, are denoising queries."""
        return 0 if self.denoising is None else self.denoising.num_queries
