"""A number of queries that falls during training (Efficient DETR, Yao et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class FallingNumber(nn.Module):
    """A number that falls linearly from `first` to `last` during `steps` iterations, and then stays.

    It keeps no state: it asks for the iteration whenever it is called, so a resumed training goes on where it was, a
    new training from old weights starts at `first`, and all processes have the same number.

    Args:
        first: number in iteration 0.
        last: number from iteration `steps` on.
        steps: length of the fall; None for no fall, `last` from the start.
        iteration: returns the number of optimiser steps that the training has taken.

    Raises:
        ValueError: the number would rise, or would not be above 0, or the fall has no length.
    """

    def __init__(self, *, first: int, last: int, steps: int | None, iteration: Callable[[], int]):
        super().__init__()
        if not 0 < last <= first:
            raise ValueError(f"the number of queries cannot fall from {first} to {last}; give first >= last > 0")
        if steps is not None and steps < 1:
            raise ValueError(f"the number of queries cannot fall in {steps} steps; give 1 or more, or None for no fall")
        self.first, self.last, self.steps, self.iteration = first, last, steps, iteration

    def forward(self) -> int:
        """Return the number of the current iteration."""
        if self.steps is None:
            return self.last
        done = min(self.iteration() / self.steps, 1.0)
        return round(self.first + (self.last - self.first) * done)
