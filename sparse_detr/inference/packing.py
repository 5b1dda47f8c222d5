"""The rows of a padded batch that count, one after the other, so that matrix products skip all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_detr.inference.conversion import runs_eagerly


@dataclass(frozen=True, eq=False)
class Packing:
    """Which of (B, K) rows count.

    Args:
        shape: (B, K).
        rows: (R,) long, the rows that count, of B * K; None to take all of them.
        full: whether every row is known to count.
    """

    shape: tuple[int, int]
    rows: Tensor | None
    full: bool

    @staticmethod
    def of(valid: Tensor | None, shape: tuple[int, int]) -> Packing:
        """Pack the `valid` (B, K) rows; None if all count.

        Only on a CPU, where it costs nothing to ask which rows count. Elsewhere, and in a graph, all rows are taken.
        """
        if valid is None:
            return Packing(shape, None, full=True)
        if valid.device.type != "cpu" or not runs_eagerly():
            return Packing(shape, None, full=False)
        if bool(valid.all()):
            return Packing(shape, None, full=True)
        return Packing(shape, valid.flatten().nonzero()[:, 0], full=False)

    @staticmethod
    def all_rows(shape: tuple[int, int]) -> Packing:
        """Take all rows, whether they count or not."""
        return Packing(shape, None, full=False)

    def take(self, x: Tensor) -> Tensor:
        """Return the rows (R, ...) of (B, K, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.rows is None else flat.index_select(0, self.rows)

    def put(self, rows: Tensor, fill: float | Tensor | None = 0.0) -> Tensor:
        """Return (B, K, ...) of the rows (R, ...).

        Args:
            rows: as `take` gives them.
            fill: what all others hold, a number or a tensor of the shape (...); None if nobody reads them.
        """
        if self.rows is None:
            return rows.unflatten(0, self.shape)
        count = self.shape[0] * self.shape[1]
        result = rows.new_empty(count, *rows.shape[1:])
        if fill is not None:
            result[...] = fill
        return result.index_copy_(0, self.rows, rows).unflatten(0, self.shape)


def padding_of(padding_mask: Tensor, has_padding: bool) -> Packing:
    """Pack the tokens of a (B, N) padding mask that are no padding."""
    shape = (padding_mask.shape[0], padding_mask.shape[1])
    return Packing.of(~padding_mask if has_padding else None, shape)


def flat_indices(indices: Tensor, num_tokens: int) -> Tensor:
    """Return (B, K) indices into (B * N) tokens, from indices into the N tokens of every image."""
    starts = torch.arange(indices.shape[0], device=indices.device) * num_tokens
    return indices + starts[:, None]
