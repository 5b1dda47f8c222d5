"""The queries that the decoder starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparse_detr.structures.outputs import PredictionGroup


@dataclass(frozen=True, eq=False)
class Denoising:
    """The denoising queries, which stand in front of the others.

    Args:
        num_queries: number of denoising queries.
        matches, repeats: see `PredictionGroup`.
    """

    num_queries: int
    matches: Sequence[tuple[Tensor, Tensor]]
    repeats: int


@dataclass(frozen=True, eq=False)
class Queries:
    """The queries that the decoder starts from.

    Args:
        content: (B, Q, C).
        position: (B, Q, C), added to the content of a query that attends; None if the decoder derives it from the
            boxes.
        reference_points: (B, Q, 2) points or (B, Q, 4) boxes cxcywh, in [0, 1] of the unpadded image.
        valid: (B, Q) bool, False on queries that only fill the batch; None if every query counts.
        proposals: the supervised predictions that the queries were chosen from; None for learned queries.
        keep: (Q, Q) bool, True where the query of the row may attend to the query of the column; None if all may.
        denoising: the denoising queries among them; None if there are no such queries.
    """

    content: Tensor
    position: Tensor | None
    reference_points: Tensor
    valid: Tensor | None = None
    proposals: PredictionGroup | None = None
    keep: Tensor | None = None
    denoising: Denoising | None = None

    def first(self, number: int | Sequence[int]) -> Queries:
        """Return the first `number` queries of every image, or as many as there are.

        Args:
            number: a list has one for every image; further rows fill the batch.

        Raises:
            ValueError: the list has not one number for every image.
        """
        numbers = list(number) if isinstance(number, Sequence) else [number]
        if isinstance(number, Sequence) and len(numbers) != self.content.shape[0]:
            raise ValueError(
                f"there are {len(numbers)} numbers of queries for {self.content.shape[0]} images; give one for every "
                "image"
            )
        rows = max(numbers)
        position = None if self.position is None else self.position[:, :rows]
        valid = None if self.valid is None else self.valid[:, :rows]
        content = self.content[:, :rows]
        if len(set(numbers)) > 1:
            counts = torch.tensor(numbers, device=content.device)
            counted = torch.arange(content.shape[1], device=content.device) < counts[:, None]
            valid = counted if valid is None else valid & counted
        references = self.reference_points[:, :rows]
        return replace(self, content=content, position=position, reference_points=references, valid=valid)

    @property
    def num_denoising(self) -> int:
        """Number of denoising queries, which stand in front."""
        return 0 if self.denoising is None else self.denoising.num_queries
