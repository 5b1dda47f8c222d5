"""Which tokens the encoder refines, and how their rows are taken out of and put back into the sequence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from sparse_detr.structures.pyramid import Pyramid


class TokenSelection(Protocol):
    """The kept tokens of a batch, K rows an image."""

    @property
    def indices(self) -> Tensor:
        """(B, K) long, position of every row in the token sequence, best first."""

    @property
    def counts(self) -> Tensor:
        """(B,) long, kept tokens of an image; rows beyond it are surplus, there to fill the batch."""

    @property
    def kept_mask(self) -> Tensor:
        """(B, N) bool, True on kept tokens."""

    @property
    def row_mask(self) -> Tensor:
        """(B, K) bool, True on rows that belong to a kept token."""

    def gather(self, tokens: Tensor) -> Tensor:
        """Take the rows (B, K, ...) of the selected tokens out of (B, N, ...)."""

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Return (B, N, C) `tokens` with the kept ones replaced by their (B, K, C) `rows`; surplus rows are dropped."""

    def at_layer(self, layer: int) -> TokenSelection:
        """The tokens that an encoder layer refines, counted from 0; the first layer's are those of the selection."""


@dataclass(frozen=True, eq=False)
class AllTokens:
    """Every token is kept: the dense encoder."""

    pyramid: Pyramid

    @cached_property
    def indices(self) -> Tensor:
        positions = torch.arange(self.pyramid.num_tokens, device=self.pyramid.device)
        return positions.expand(len(self.pyramid.valid_shapes), -1)

    @property
    def counts(self) -> Tensor:
        return torch.tensor(self.pyramid.valid_counts, device=self.pyramid.device)

    @property
    def kept_mask(self) -> Tensor:
        return ~self.pyramid.padding_mask

    @property
    def row_mask(self) -> Tensor:
        return ~self.pyramid.padding_mask

    def gather(self, tokens: Tensor) -> Tensor:
        return tokens

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return rows

    def at_layer(self, layer: int) -> TokenSelection:
        return self


@dataclass(frozen=True, eq=False)
class TopKTokens:
    """The best tokens of every image by score.

    Args:
        indices: (B, K) long, best first.
        counts: (B,) long, at most K.
        num_tokens: N.
    """

    indices: Tensor
    counts: Tensor
    num_tokens: int

    @cached_property
    def row_mask(self) -> Tensor:
        ranks = torch.arange(self.indices.shape[1], device=self.indices.device)
        return ranks < self.counts[:, None]

    @cached_property
    def kept_mask(self) -> Tensor:
        kept = torch.zeros(self.indices.shape[0], self.num_tokens, dtype=torch.bool, device=self.indices.device)
        return kept.scatter(1, self.indices, self.row_mask)

    def gather(self, tokens: Tensor) -> Tensor:
        index = self.indices.reshape(*self.indices.shape, *[1] * (tokens.dim() - 2))
        return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        rows = torch.where(self.row_mask[..., None], rows, self.gather(tokens))
        return tokens.scatter(1, self.indices[..., None].expand_as(rows), rows)

    def at_layer(self, layer: int) -> TokenSelection:
        return self


@dataclass(frozen=True, eq=False)
class CascadedTokens(TopKTokens):
    """Fewer and fewer of the best tokens, layer by layer: each layer's are the first of the layer's before.

    The selection as a whole is that of the first layer.

    Args:
        layer_counts: (layers, B) long, kept tokens of every layer and image; the first row is `counts`.
        layer_rows: K of every layer, the largest of its counts.
    """

    layer_counts: Tensor
    layer_rows: tuple[int, ...]

    def at_layer(self, layer: int) -> TopKTokens:
        if layer >= len(self.layer_rows):
            raise ValueError(
                f"the cascade keeps tokens for {len(self.layer_rows)} encoder layers, and this is layer {layer + 1}; "
                "give the selector a schedule of one share a layer"
            )
        return TopKTokens(
            indices=self.indices[:, : self.layer_rows[layer]],
            counts=self.layer_counts[layer],
            num_tokens=self.num_tokens,
        )
