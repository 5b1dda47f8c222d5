"""How many tokens each encoder layer refines (Sparse DETR, section 3.1; Focus-DETR's cascade, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def check_keep_ratio(keep_ratio: float) -> float:
    """Return a ratio in (0, 1]; raise `ValueError` for any other."""
    if not 0 < keep_ratio <= 1:
        raise ValueError(f"keep_ratio must be above 0 and at most 1, got {keep_ratio}; 1 refines every token")
    return float(keep_ratio)


def check_schedule(schedule: Sequence[float]) -> tuple[float, ...]:
    """Return shares in (0, 1] that start at 1 and never grow; raise `ValueError` for any others."""
    shares = tuple(float(share) for share in schedule)
    falling = all(after <= before for before, after in zip(shares[:-1], shares[1:], strict=True))
    if not shares or shares[0] != 1 or not falling or shares[-1] <= 0:
        raise ValueError(
            f"a schedule must start at 1, never grow and stay above 0, got {shares}; "
            "the share that the first layer keeps is keep_ratio"
        )
    return shares


def layer_shares(
    *, num_layers: int, published: Sequence[float], shares: Sequence[float] | None = None
) -> tuple[float, ...]:
    """A schedule of one share an encoder layer.

    Args:
        num_layers: encoder layers.
        published: shares of another number of layers, to be spread over these by linear interpolation, the first and
            the last where they are; a single layer takes the first.
        shares: those of the layers themselves, instead.

    Raises:
        ValueError: there are not as many shares as layers.
    """
    if shares is not None:
        if len(shares) != num_layers:
            raise ValueError(
                f"the schedule has {len(shares)} shares, and the encoder {num_layers} layers; "
                "give one share a layer, or None for the published ones spread over the layers"
            )
        return tuple(float(share) for share in shares)
    last = len(published) - 1
    positions = [layer * last / max(num_layers - 1, 1) for layer in range(num_layers)]
    below = [min(int(position), last - 1) for position in positions]
    return tuple(
        round(published[i] + (position - i) * (published[i + 1] - published[i]), 9)
        for i, position in zip(below, positions, strict=True)
    )


def token_budgets(valid_counts: list[int], keep_ratio: float) -> list[int]:
    """Tokens that every image keeps of its real ones: min(int(n * keep_ratio) + 1, n)."""
    return [min(int(count * keep_ratio) + 1, count) for count in valid_counts]


def cascaded_budgets(valid_counts: list[int], keep_ratio: float, schedule: Sequence[float]) -> list[list[int]]:
    """Tokens that every layer keeps of every image, by the image's own number of tokens."""
    return [token_budgets(valid_counts, keep_ratio * share) for share in schedule]


def batch_budgets(valid_counts: list[int], keep_ratio: float, schedule: Sequence[float]) -> list[list[int]]:
    """Tokens that every layer keeps of every image, by the largest image: min(k_b, int(c_i max k)), k as above."""
    first = token_budgets(valid_counts, keep_ratio)
    # In float32, as the public implementation, whose products can fall below a whole number where doubles do not.
    layers = (max(int(torch.tensor(share, dtype=torch.float32) * max(first)), 1) for share in schedule)
    return [[min(budget, layer) for budget in first] for layer in layers]
