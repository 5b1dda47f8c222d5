"""Propose one of three augmentation presets: photos, aerial, industrial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from sparse_detr.data.advice import Objects
from sparse_detr.data.duplicates import Fingerprint

Preset = Literal["photos", "aerial", "industrial"]

_SMALL, _MANY = 0.12, 10  # of an aerial image: length of the median object as a share of it, objects an image
_ALIKE = 0.3  # share of the bits in which two images of a fixed camera differ; those of photographs differ in half
_LEAST = 5  # images for a judgement
_SAMPLES = 200


class PresetChoice(NamedTuple):
    """A proposed preset and the numbers that speak for it."""

    name: Preset
    reason: str

    def __str__(self) -> str:
        return f"augmentation preset: {self.name} ({self.reason})"


def choose_preset(objects: Objects, fingerprints: Sequence[tuple[str, Fingerprint]]) -> PresetChoice | None:
    """Propose a preset; None for too few images.

    Images that look alike come from a fixed camera: "industrial". Many small objects in an image: "aerial". All else:
    "photos".
    """
    if len(objects.images) < _LEAST:
        return None
    difference = _mean_difference(fingerprints)
    if difference is not None and difference < _ALIKE:
        return PresetChoice(
            "industrial", f"images differ in {difference:.0%} of their coarse structure: a fixed camera"
        )
    length = float(np.median(np.sqrt(objects.shares.prod(axis=1))))
    count = len(objects.sides) / len(objects.images)
    numbers = f"the median object is {length:.0%} of the image's length, {count:.1f} objects an image"
    return PresetChoice("aerial" if length < _SMALL and count >= _MANY else "photos", numbers)


def _mean_difference(fingerprints: Sequence[tuple[str, Fingerprint]]) -> float | None:
    """Return the mean share of bits in which two images differ; None for fewer than `_LEAST` with structure."""
    bits = [print_.bits for _, print_ in fingerprints if print_.bits is not None][:_SAMPLES]
    if len(bits) < _LEAST:
        return None
    ones = np.array(bits).mean(axis=0)
    return float((2 * ones * (1 - ones)).mean() * len(bits) / (len(bits) - 1))
