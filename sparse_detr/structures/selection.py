"""The tokens that the encoder refines: how their rows are taken out of the sequence and written back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sparse_detr.structures.pyramid import Pyramid


class TokenSelection(Protocol):
    """The kept tokens of a batch, K rows an image."""

    @property
    def indices(self) -> Tensor:
        """(B, K) long, index of every row in the token sequence, best first."""

    @property
    def counts(self) -> Tensor:
        """(B,) long, number of kept tokens of every image; further rows are surplus, they only fill the batch."""

    @property
    def keep(self) -> Tensor:
        """(B, N) bool, True on kept tokens."""

    @property
    def valid(self) -> Tensor:
        """(B, K) bool, False on surplus rows."""

    @property
    def any_valid(self) -> Tensor | None:
        """(K,) bool, True on rows that are valid in some image; None if all rows are."""

    def gather(self, tokens: Tensor) -> Tensor:
        """Return the rows (B, K, ...) of the selected tokens of (B, N, ...)."""

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Return (B, N, C) `tokens` with kept tokens replaced by (B, K, C) `rows`; surplus rows have no effect."""

    def at_layer(self, layer: int) -> TokenSelection:
        """Return the tokens that an encoder layer, counted from 0, refines; those of the first are the selection."""

    def check_layers(self, number: int) -> None:
        """Raise `ValueError` if it is not for an encoder of so many layers."""


@dataclass(frozen=True, eq=False)
class AllTokens:
    """Every token is kept, as by a dense encoder.

    Args:
        pyramid: geometry.
        mask: as in `Tokens`.
    """

    pyramid: Pyramid
    mask: Tensor | None = None

    @property
    def indices(self) -> Tensor:
        batch_size, num_tokens = self.keep.shape
        return torch.arange(num_tokens, device=self.pyramid.device).expand(batch_size, -1)

    @property
    def counts(self) -> Tensor:
        return self.keep.sum(-1)

    @property
    def keep(self) -> Tensor:
        return ~(self.pyramid.padding_mask if self.mask is None else self.mask)

    @property
    def valid(self) -> Tensor:
        return self.keep

    @property
    def any_valid(self) -> Tensor | None:
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
class CoarseTokens:
    """The tokens of the coarsest levels, in token order; some encoder layers refine all tokens instead (Lite DETR).

    Args:
        pyramid: geometry of all tokens.
        start: index of the first token of these levels, which end the sequence.
        full: for every encoder layer, whether it refines all tokens.
    """

    pyramid: Pyramid
    start: int
    full: tuple[bool, ...]

    @property
    def indices(self) -> Tensor:
        positions = torch.arange(self.start, self.pyramid.num_tokens, device=self.pyramid.device)
        return positions.expand(self.pyramid.batch_size, -1)

    @property
    def counts(self) -> Tensor:
        return self.valid.sum(-1)

    @property
    def keep(self) -> Tensor:
        fine, coarse = self.pyramid.padding_mask[:, : self.start], self.valid
        return torch.cat([torch.zeros_like(fine), coarse], 1)

    @property
    def valid(self) -> Tensor:
        return ~self.pyramid.padding_mask[:, self.start :]

    @property
    def any_valid(self) -> Tensor | None:
        return None

    def gather(self, tokens: Tensor) -> Tensor:
        return tokens[:, self.start :]

    def scatter(self, tokens: Tensor, rows: Tensor) -> Tensor:
        return torch.cat([tokens[:, : self.start], rows], 1)

    def at_layer(self, layer: int) -> TokenSelection:
        return AllTokens(self.pyramid) if self.full[layer] else self

    def check_layers(self, number: int) -> None:
        if len(self.full) != number:
            raise ValueError(
                f"the level selector is for {len(self.full)} encoder layers, but the encoder has {number}; "
                "give both the same number of layers"
            )


@dataclass(frozen=True, eq=False)
class TopKTokens:
    """The best tokens of every image by score, as `top_tokens` chooses them.

    Args:
        indices: (B, K) long, best first.
        counts: (B,) long, at most K.
        num_tokens: N.
        valid: (B, K) bool, False on surplus rows.
        any_valid: (K,) bool, True on rows that are valid in some image; None if all rows are.
    """

    indices: Tensor
    counts: Tensor
    num_tokens: int
    valid: Tensor
    any_valid: Tensor | None = None

    @staticmethod
    def of(indices: Tensor, counts: Tensor, *, num_tokens: int, exact: bool = True) -> TopKTokens:
        """Make a selection of the first `counts` (B,) of (B, K) tokens, best first.

        Args:
            exact: K is the largest count; else it may be larger.
        """
        valid = torch.arange(indices.shape[1], device=indices.device) < counts[:, None]
        any_valid = None if exact else valid.any(0)
        return TopKTokens(indices=indices, counts=counts, num_tokens=num_tokens, valid=valid, any_valid=any_valid)

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
    """The best tokens, fewer from layer to layer: a layer keeps the first tokens of the layer before.

    As a selection it is that of the first layer.

    Args:
        layers: the tokens of every layer.
    """

    layers: tuple[TopKTokens, ...] = ()

    @staticmethod
    def nested(
        indices: Tensor, counts: Sequence[Tensor], rows: Sequence[int], *, num_tokens: int, exact: bool = True
    ) -> CascadedTokens:
        """Make a selection; layer i keeps the first `counts[i]` (B,) of (B, K) tokens, in `rows[i]` rows."""
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
            any_valid=first.any_valid,
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


@dataclass(frozen=True, eq=False)
class PolledTokens(TopKTokens):
    """The best tokens, with some further tokens that are means of all the others (PnP-DETR, section 3.2).

    Args:
        pooling: (B, S, N), weight of every token of the image in each of S pooled tokens. The weights of a pooled token
            sum to 1, and are 0 on kept tokens and padding; all are 0 where every token is kept.
    """

    pooling: Tensor = field(kw_only=True)

    @staticmethod
    def polled(tokens: TopKTokens, pooling: Tensor) -> PolledTokens:
        """Add pooled tokens to a selection."""
        return PolledTokens(
            indices=tokens.indices,
            counts=tokens.counts,
            num_tokens=tokens.num_tokens,
            valid=tokens.valid,
            any_valid=tokens.any_valid,
            pooling=pooling,
        )


def top_tokens(scores: Tensor, counts: Tensor, rows: int, *, exact: bool = True) -> TopKTokens:
    """Choose the tokens with the highest scores; surplus rows hold the next best tokens.

    Args:
        scores: (B, N).
        counts: (B,) long, number of tokens to keep of every image.
        rows: K.
        exact: K is the largest count; else it may be larger.
    """
    return TopKTokens.of(scores.detach().topk(rows, dim=1).indices, counts, num_tokens=scores.shape[1], exact=exact)


def top_token_cascade(
    scores: Tensor, counts: Sequence[Tensor], rows: Sequence[int], *, exact: bool = True
) -> CascadedTokens:
    """Choose the tokens with the highest scores for every layer; `counts` and `rows` are one a layer."""
    indices = scores.detach().topk(rows[0], dim=1).indices
    return CascadedTokens.nested(indices, counts, rows, num_tokens=scores.shape[1], exact=exact)


def full_layers(*, num_layers: int, blocks: int) -> tuple[bool, ...]:
    """Return for every encoder layer whether it is the last of its block, which refines all tokens.

    Raises:
        ValueError: the layers cannot be divided into so many blocks.
    """
    if blocks < 1 or num_layers % blocks:
        raise ValueError(f"blocks must divide the {num_layers} encoder layers, got {blocks}")
    period = num_layers // blocks
    return tuple((layer + 1) % period == 0 for layer in range(num_layers))
