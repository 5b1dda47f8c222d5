"""A number of queries that falls during training (Efficient DETR, Yao et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class FallingNumber(nn.Module):
    """A number that falls linearly from `first_number` to `last_number` in `falling_steps` iterations, then stays.

    It keeps no state: it asks for the iteration whenever it is called, so a resumed training goes on where it was, a
    new training from old weights starts at `first_number`, and all processes have the same number.

    Args:
        first_number: in iteration 0.
        last_number: from iteration `falling_steps` on.
        falling_steps: length of the fall; None for no fall, `last_number` from the start.
        iteration: returns the number of optimiser steps that the training has taken.

    Raises:
        ValueError: the number would rise, or would not be above 0, or the fall has no length.
    """

    def __init__(self, *, first_number: int, last_number: int, falling_steps: int | None, iteration: Callable[[], int]):
        super().__init__()
        if not 0 < last_number <= first_number:
            raise ValueError(
                f"the number of queries cannot fall from {first_number} to {last_number}; give a larger first number "
                "(first_num_queries of a recipe), or a smaller last one (num_queries), above 0"
            )
        if falling_steps is not None and falling_steps < 1:
            raise ValueError(
                f"the number of queries cannot fall in {falling_steps} steps; give 1 or more, or None for no fall"
            )
        self.first_number, self.last_number = first_number, last_number
        self.falling_steps, self.iteration = falling_steps, iteration

    def forward(self) -> int:
        """Return the number of the current iteration."""
        if self.falling_steps is None:
            return self.last_number
        done = min(self.iteration() / self.falling_steps, 1.0)
        return round(self.first_number + (self.last_number - self.first_number) * done)
