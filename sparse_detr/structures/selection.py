"""Which tokens the encoder refines, and how their rows are taken out of and put back into the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    def keep(self) -> Tensor:
        """(B, N) bool, True on kept tokens."""

    @property
    def valid(self) -> Tensor:
        """(B, K) bool, False on surplus rows."""

    @property
    def used(self) -> Tensor | None:
        """(K,) bool, False on rows that are surplus for all images; None where there are no such rows."""

    def gather(self, tokens: Tensor) -> Tensor:
        """Take the rows (B, K, ...) of the selected tokens out of (B, N, ...)."""

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Return (B, N, C) `tokens` with the kept ones replaced by their (B, K, C) `rows`; surplus rows are dropped."""

    def at_layer(self, layer: int) -> TokenSelection:
        """Return the tokens that an encoder layer refines, counted from 0; the first layer's are the selection's."""

    def check_layers(self, number: int) -> None:
        """Raise `ValueError` if it is not for an encoder of so many layers."""


@dataclass(frozen=True, eq=False)
class AllTokens:
    """Every token is kept: the dense encoder."""

    pyramid: Pyramid

    @property
    def indices(self) -> Tensor:
        positions = torch.arange(self.pyramid.num_tokens, device=self.pyramid.device)
        return positions.expand(self.pyramid.batch_size, -1)

    @property
    def counts(self) -> Tensor:
        return self.keep.sum(-1)

    @property
    def keep(self) -> Tensor:
        return ~self.pyramid.padding_mask

    @property
    def valid(self) -> Tensor:
        return ~self.pyramid.padding_mask

    @property
    def used(self) -> Tensor | None:
        return None

    def gather(self, tokens: Tensor) -> Tensor:
        return tokens

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return rows

    def at_layer(self, layer: int) -> TokenSelection:
        return self

    def check_layers(self, number: int) -> None:
        pass


@dataclass(frozen=True, eq=False)
class TopKTokens:
    """The best tokens of every image by score; `top_tokens` chooses them.

    Args:
        indices: (B, K) long, best first.
        counts: (B,) long, at most K.
        num_tokens: N.
        valid: (B, K) bool, False on surplus rows.
        used: (K,) bool, False on rows that are surplus for all images; None where there are no such rows.
    """

    indices: Tensor
    counts: Tensor
    num_tokens: int
    valid: Tensor
    used: Tensor | None = None

    @staticmethod
    def of(indices: Tensor, counts: Tensor, *, num_tokens: int, exact: bool = True) -> TopKTokens:
        """Make a selection of the first `counts` (B,) of (B, K) tokens, best first.

        Args:
            exact: K is the largest count; else it may be larger.
        """
        valid = torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
        used = None if exact else valid.any(0)
        return TopKTokens(indices=indices, counts=counts, num_tokens=num_tokens, valid=valid, used=used)

    @property
    def keep(self) -> Tensor:
        kept = torch.zeros(self.indices.shape[0], self.num_tokens, dtype=torch.bool, device=self.indices.device)
        return kept.scatter(1, self.indices, self.valid)

    def gather(self, tokens: Tensor) -> Tensor:
        index = self.indices.reshape(*self.indices.shape, *[1] * (tokens.dim() - 2))
        return tokens.gather(1, index.expand(-1, -1, *tokens.shape[2:]))

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        rows = torch.where(self.valid[..., None], rows, self.gather(tokens))
        return tokens.scatter(1, self.indices[..., None].expand_as(rows), rows)

    def at_layer(self, layer: int) -> TokenSelection:
        return self

    def check_layers(self, number: int) -> None:
        pass


@dataclass(frozen=True, eq=False)
class CascadedTokens(TopKTokens):
    """Fewer and fewer of the best tokens, layer by layer: each layer's are the first of the layer's before.

    The selection as a whole is that of the first layer.

    Args:
        layers: the tokens of every layer.
    """

    layers: tuple[TopKTokens, ...] = ()

    @staticmethod
    def nested(
        indices: Tensor, counts: Sequence[Tensor], rows: Sequence[int], *, num_tokens: int, exact: bool = True
    ) -> CascadedTokens:
        """Make a selection whose layers keep the first `counts` (B,) of (B, K) tokens, in so many `rows` each."""
        layers = tuple(
            TopKTokens.of(indices[:, :row], count, num_tokens=num_tokens, exact=exact)
            for count, row in zip(counts, rows, strict=True)
        )
        first = layers[0]
        return CascadedTokens(
            indices=first.indices,
            counts=first.counts,
            num_tokens=num_tokens,
            valid=first.valid,
            used=first.used,
            layers=layers,
        )

    def at_layer(self, layer: int) -> TopKTokens:
        return self.layers[layer]

    def check_layers(self, number: int) -> None:
        if len(self.layers) != number:
            raise ValueError(
                f"the budget's schedule has {len(self.layers)} shares, but the encoder {number} layers; "
                "give one share a layer"
            )


def top_tokens(scores: Tensor, counts: Tensor, rows: int, *, exact: bool = True) -> TopKTokens:
    """Choose the tokens of highest score; images with fewer of them fill up with their next best.

    Args:
        scores: (B, N).
        counts: (B,) long, tokens to keep of every image.
        rows: K.
        exact: K is the largest count; else it may be larger.
    """
    return TopKTokens.of(scores.detach().topk(rows, dim=1).indices, counts, num_tokens=scores.shape[1], exact=exact)


def top_token_cascade(
    scores: Tensor, counts: Sequence[Tensor], rows: Sequence[int], *, exact: bool = True
) -> CascadedTokens:
    """Choose the tokens of highest score for every layer; the arguments are those of `top_tokens`, one a layer."""
    indices = scores.detach().topk(rows[0], dim=1).indices
    return CascadedTokens.nested(indices, counts, rows, num_tokens=scores.shape[1], exact=exact)
