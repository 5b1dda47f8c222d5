"""What a config does with data: how large images become, how many tokens and queries there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Resize:
    """A resize by the short side.

    Args:
        short: length of the short side in pixels.
        longest: the most for the long side.
    """

    short: int
    longest: int

    def scale(self, width: float, height: float) -> float:
        """Return by what the sides of an image are multiplied."""
        return min(self.short / min(width, height), self.longest / max(width, height))


@dataclass(frozen=True)
class Plan:
    """The numbers of a config that data must fit to; None where it does not say.

    Args:
        num_queries: boxes of an image that the model can learn.
        num_detections: detections of an image that it returns.
        evaluation_limit: detections of a class in an image that its scores count, if the config sets it.
        value_range: values of black and white of gray images of more than 8 bits.
        resize: of the training, by the middle of its short sides.
        short_sizes: the lengths that the training draws the short side from.
        strides: pixels from token to token, level by level; () if unknown.
        keep_ratio: share of the tokens that the encoder refines; 1 for all.
        crops: whether the augmentation cuts images.
    """

    num_queries: int | None = 300
    num_detections: int | None = None
    evaluation_limit: int | None = None
    value_range: Sequence[float] | None = None
    resize: Resize | None = None
    short_sizes: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    keep_ratio: float | None = None
    crops: bool = False


@dataclass(frozen=True)
class Change:
    """A setting to change because of the data.

    Args:
        key: of the lazy config; "" if no single setting does it.
        value: to set.
        reason: the numbers that speak for it.
    """

    key: str
    value: object
    reason: str
