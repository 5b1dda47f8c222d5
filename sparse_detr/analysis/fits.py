"""Fits of a measured cost to a sum of terms, such as `a + b * tokens`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """A sum of terms with their coefficients.

    Args:
        coefficients: one for each term.
        r2: coefficient of determination of the values; NaN if all values are equal.
        largest_deviation: largest distance of a value from the fit, as a share of the fit.
    """

    coefficients: tuple[float, ...]
    r2: float
    largest_deviation: float

    def __call__(self, *terms: float) -> float:
        """Return the fitted value at these terms."""
        return sum(coefficient * term for coefficient, term in zip(self.coefficients, terms, strict=True))


def fit_sum(terms: Sequence[Sequence[float]], values: Sequence[float]) -> Fit:
    """Fit values by least squares of their relative errors, so that small and large ones count alike.

    Args:
        terms: those of every value; a term that is always 1 makes a constant.
        values: above 0.

    Raises:
        ValueError: a value is not above 0, or the terms do not determine the coefficients.
    """
    x, y = np.asarray(terms, dtype=float), np.asarray(values, dtype=float)
    if (y <= 0).any():
        raise ValueError(f"values must be above 0, got {y.min()}")
    coefficients, _, rank, _ = np.linalg.lstsq(x / y[:, None], np.ones_like(y), rcond=None)
    if rank < x.shape[1]:
        raise ValueError(f"{len(y)} values do not determine {x.shape[1]} coefficients; give values at other terms")
    fitted = x @ coefficients
    total = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(((y - fitted) ** 2).sum()) / total if total else math.nan
    return Fit(tuple(map(float, coefficients)), r2, float((np.abs(y - fitted) / np.abs(fitted)).max()))


def fit_line(x: Sequence[float], values: Sequence[float]) -> Fit:
    """Fit `values = a + b * x`; the coefficients are a and b. See `fit_sum`."""
    return fit_sum([(1.0, position) for position in x], values)
