"""Budgets: how many tokens of an image every encoder layer refines.

The same in every layer (Sparse DETR), rounded down, random in training (PnP-DETR), and a cascade over layers
(Focus-DETR, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from sparse_detr.structures import Pyramid, TokenSelection, at_most, top_token_cascade, top_tokens

BELOW_ALL = 0.999
"""Up to this share, fewer than all tokens are kept of any number, which a tracer cannot find out."""


Count = TypeVar("Count", int, Tensor)
"""Tokens of one image; or a (B,) long tensor of all images, if the host does not know them."""


class Budget(Protocol):
    """The number of tokens of an image that every encoder layer refines."""

    @property
    def keep_ratio(self) -> float:
        """Share of the tokens that the first layer refines, above 0 and at most 1."""

    @property
    def mean_keep_ratio(self) -> float:
        """Share of the tokens that a layer refines: the mean over the layers."""

    def with_keep_ratio(self, keep_ratio: float) -> Budget:
        """Return the same budget with another share in the first layer."""

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        """Return the tokens with the highest `ranking` (B, N), as many as the budget says."""


@dataclass(frozen=True, kw_only=True)
class EvenBudget:
    """The same tokens in every layer: min(int(n * keep_ratio) + 1, n) of an image with n valid tokens.

    Args:
        keep_ratio: share of the tokens, above 0 and at most 1.

    Raises:
        ValueError: the ratio is out of range.
    """

    keep_ratio: float

    def __post_init__(self) -> None:
        check_keep_ratio(self.keep_ratio)

    @property
    def mean_keep_ratio(self) -> float:
        return self.keep_ratio

    def with_keep_ratio(self, keep_ratio: float) -> EvenBudget:
        return replace(self, keep_ratio=keep_ratio)

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        if pyramid.valid_counts is None:
            most = self.most(pyramid.num_tokens)
            return top_tokens(ranking, self.count(count_valid_tokens(pyramid)), most, exact=False)
        kept = [self.count(valid) for valid in pyramid.valid_counts]
        return top_tokens(ranking, torch.tensor(kept, device=ranking.device), max(kept))

    def count(self, valid: Count) -> Count:
        """Return how many of `valid` tokens are kept."""
        return share_of(valid, self.keep_ratio)

    def most(self, num_tokens: int) -> int:
        """Return a number that `count` of at most `num_tokens` tokens does not exceed: symbolic in an export."""
        return share_of(num_tokens, self.keep_ratio)


@dataclass(frozen=True, kw_only=True)
class RoundedDownBudget(EvenBudget):
    """The same tokens in every layer: max(int(n * keep_ratio), 1) of an image with n valid tokens.

    Images with a product below 1 keep one token, where the public code of PnP-DETR keeps none.

    Args:
        keep_ratio: share of the tokens, above 0 and at most 1.
        precision: of the product. `double`, as Python and all other budgets multiply; `single`, as the public code of
            PnP-DETR: for some numbers of tokens it keeps one more or less, 116 instead of 117 with 0.65 of 180.
    """

    precision: Literal["double", "single"] = "double"

    def count(self, valid: Count) -> Count:
        if not isinstance(valid, Tensor):
            return int(self.count(torch.tensor(valid)))
        dtype = torch.float64 if self.precision == "double" else torch.float32
        return (valid.to(dtype) * self.keep_ratio).long().clamp(min=1)

    def most(self, num_tokens: int) -> int:
        if self.precision == "single":
            return super().most(num_tokens)
        return _at_least_one(torch.sym_int(num_tokens * self.keep_ratio))


def _at_least_one(number: int) -> int:
    """Return the number, or 1 if it is 0: symbolic in an export; constant in a trace of torch.jit."""
    return max(int(number), 1) if torch.jit.is_tracing() else torch.sym_max(number, 1)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class RandomBudget:
    """A budget whose share is drawn anew in every call, from a uniform distribution.

    The share comes from PyTorch's global CPU generator, so every process of a training draws its own, and a resumed
    training goes on with the same shares.

    Args:
        budget: how many tokens a share is; its own share is not used.
        min_keep_ratio, max_keep_ratio: ends of the range of the share, above 0 and at most 1.

    Raises:
        ValueError: an end is out of range, or the smaller one is the larger.
    """

    budget: Budget
    min_keep_ratio: float
    max_keep_ratio: float

    def __post_init__(self) -> None:
        check_keep_ratio(self.min_keep_ratio)
        check_keep_ratio(self.max_keep_ratio)
        if self.min_keep_ratio > self.max_keep_ratio:
            raise ValueError(
                f"there is no share from {self.min_keep_ratio} to {self.max_keep_ratio}; give the smaller end first"
            )

    @property
    def schedule(self) -> Sequence[float]:
        """That of the budget, see `CascadedBudget`; () without one."""
        return getattr(self.budget, "schedule", ())

    @property
    def keep_ratio(self) -> float:
        """The mean share."""
        return (self.min_keep_ratio + self.max_keep_ratio) / 2

    @property
    def mean_keep_ratio(self) -> float:
        return self.with_keep_ratio(self.keep_ratio).mean_keep_ratio

    def with_keep_ratio(self, keep_ratio: float) -> Budget:
        """Return the budget with this share, which is no longer random."""
        return self.budget.with_keep_ratio(keep_ratio)

    def draw(self) -> float:
        """Draw a share."""
        drawn = self.min_keep_ratio + (self.max_keep_ratio - self.min_keep_ratio) * torch.rand(()).item()
        return min(drawn, self.max_keep_ratio)

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        return self.with_keep_ratio(self.draw()).select(ranking, pyramid)


@dataclass(frozen=True, kw_only=True)
class CascadedBudget:
    """A budget that falls from layer to layer: layer i refines min(int(n * keep_ratio * c_i) + 1, n) of n tokens.

    Args:
        keep_ratio: share of the tokens in the first layer, above 0 and at most 1.
        schedule: c_i of every encoder layer, 1 for the first and never growing.

    Raises:
        ValueError: a ratio or share is out of range, or the schedule does not start at 1 or grows.
    """

    keep_ratio: float
    schedule: Sequence[float]

    def __post_init__(self) -> None:
        check_keep_ratio(self.keep_ratio)
        object.__setattr__(self, "schedule", check_schedule(self.schedule))

    @property
    def mean_keep_ratio(self) -> float:
        return self.keep_ratio * sum(self.schedule) / len(self.schedule)

    def with_keep_ratio(self, keep_ratio: float) -> CascadedBudget:
        return replace(self, keep_ratio=keep_ratio)

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        if pyramid.valid_counts is None:
            counts = self.layers(count_valid_tokens(pyramid))
            return top_token_cascade(ranking, counts, self.largest(pyramid.num_tokens), exact=False)
        layers = self.host_layers(pyramid.valid_counts)
        counts = list(torch.tensor(layers, device=ranking.device))
        return top_token_cascade(ranking, counts, [max(kept) for kept in layers])

    def layers(self, counts: Tensor) -> list[Tensor]:
        """Return for every layer (B,) kept tokens of images with (B,) `counts` valid tokens."""
        return [share_of(counts, self.keep_ratio * share) for share in self.schedule]

    def host_layers(self, counts: Sequence[int]) -> list[list[int]]:
        """Return for every layer and image the kept tokens of images with `counts` valid tokens."""
        return [[share_of(count, self.keep_ratio * share) for count in counts] for share in self.schedule]

    def largest(self, count: int) -> list[int]:
        """Return for every layer the largest number of kept tokens of images with at most `count` tokens."""
        return [share_of(count, self.keep_ratio * share) for share in self.schedule]


class BatchCascadedBudget(CascadedBudget):
    """The cascade of the public code of Focus-DETR, which depends on the largest image of the batch.

    Layer i refines int(K c_i) tokens, but no more than the first layer keeps of the image; K is the largest number that
    the first layer keeps of any image of the batch. So an image may keep other tokens in another batch.
    """

    def layers(self, counts: Tensor) -> list[Tensor]:
        first = share_of(counts, self.keep_ratio)
        # In float32 as in the public code, where a product can fall just below a whole number and float64 does not.
        shares = torch.tensor(self.schedule, dtype=torch.float32, device=counts.device)
        return [first.minimum((share * first.max()).long().clamp(min=1)) for share in shares]

    def host_layers(self, counts: Sequence[int]) -> list[list[int]]:
        return [kept.tolist() for kept in self.layers(torch.tensor(counts))]

    def largest(self, count: int) -> list[int]:
        # One more than every share, because float32 may round up.
        return [at_most(share_of(count, self.keep_ratio * share) + 1, count) for share in self.schedule]


def check_schedule(schedule: Sequence[float]) -> tuple[float, ...]:
    """Return shares in (0, 1] that start at 1 and never grow; raise `ValueError` for any others."""
    shares = tuple(float(share) for share in schedule)
    falling = all(after <= before for before, after in zip(shares[:-1], shares[1:], strict=True))
    if not shares or shares[0] != 1 or not falling or shares[-1] <= 0:
        raise ValueError(
            f"a schedule must start at 1, never grow and stay above 0, got {shares}; "
            "set the share of the first layer with keep_ratio"
        )
    return shares


def layer_shares(
    *, num_layers: int, published: Sequence[float], shares: Sequence[float] | None = None
) -> tuple[float, ...]:
    """Return a schedule with one share for every encoder layer.

    Args:
        num_layers: number of encoder layers.
        published: shares for another number of layers, which are interpolated linearly between the first and the last
            layer; a single layer takes the first share.
        shares: shares of these layers, used instead of `published`; None for no such shares.

    Raises:
        ValueError: the number of shares is not the number of layers.
    """
    if shares is not None:
        if len(shares) != num_layers:
            raise ValueError(
                f"the schedule has {len(shares)} shares, and the encoder {num_layers} layers; "
                "give one share for each layer, or None to spread the published shares over the layers"
            )
        return tuple(float(share) for share in shares)
    last = len(published) - 1
    positions = [layer * last / max(num_layers - 1, 1) for layer in range(num_layers)]
    below = [min(int(position), last - 1) for position in positions]
    return tuple(
        round(published[i] + (position - i) * (published[i + 1] - published[i]), 9)
        for i, position in zip(below, positions, strict=True)
    )


def share_of(count: Count, keep_ratio: float) -> Count:
    """Return how many of `count` tokens are kept: min(int(count * keep_ratio) + 1, count)."""
    if isinstance(count, Tensor):
        return count.minimum((count.double() * keep_ratio).long() + 1)
    kept = torch.sym_int(count * keep_ratio) + 1
    if isinstance(count, torch.SymInt) and keep_ratio <= BELOW_ALL:
        return kept
    return at_most(kept, count)


def count_valid_tokens(pyramid: Pyramid) -> Tensor:
    """Return (B,) long: the number of valid tokens of every image."""
    return pyramid.valid_sizes.prod(-1).sum(-1)


def check_keep_ratio(keep_ratio: float) -> None:
    """Raise `ValueError` for a ratio that is not above 0 and at most 1."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be above 0 and at most 1, got {keep_ratio}; 1 refines every token")
