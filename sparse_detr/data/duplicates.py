"""Find images that occur twice, as the same pixels or nearly the same, within data and between training and validation.

Nearly the same is measured with a difference hash (Krawetz 2013, "Kind of like that"): the image in gray at 17 x 16
pixels, a bit for each pixel that is brighter than its left neighbour. Copies that were saved or resized again differ in
a few of the 256 bits, other images in about half of them. Copies that were turned, flipped or cut are not found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tqdm import tqdm

from sparse_detr.data.findings import FaultKind, Finding

_SIDE = 16
_BITS = _SIDE * _SIDE
NEAR = 16  # bits that nearly equal images may differ in
_FLAT = 4.0  # an image whose gray values deviate less has no bits that mean anything
_MOST = 20_000  # images that are compared with each other; more would take minutes
_BLOCK = 256
_SLOW = 5000  # images whose comparison takes seconds


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of an image to find its copies.

    Args:
        digest: equal for equal pixels.
        bits: (256,) bool of the difference hash; None for an image of nearly one gray.
    """

    digest: bytes
    bits: np.ndarray | None


def fingerprint(image: np.ndarray) -> Fingerprint:
    """Return the fingerprint of an image (height, width, 3) uint8."""
    digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, person=repr(image.shape).encode()[:16])
    small = Image.fromarray(image).convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    gray = np.asarray(small, dtype=np.int16)
    bits = None if gray.std() < _FLAT else (gray[:, 1:] > gray[:, :-1]).ravel()
    return Fingerprint(digest.digest(), bits)


Named = Sequence[tuple[str, Fingerprint]]


def find_duplicates(images: Named) -> list[Finding]:
    """Find images of one data set that have a copy among the others."""
    first: dict[bytes, str] = {}
    exact = [
        f"{name} = {first[print_.digest]}"
        for name, print_ in images
        if first.setdefault(print_.digest, name) != name  # all but the first of equal ones
    ]
    single = [(name, print_) for name, print_ in images if first[print_.digest] == name]
    near = [f"{a} ~ {b}" for a, b in _near_pairs(single, None)] if len(single) <= _MOST else []
    return [
        *FaultKind("duplicate-image", "images have the same pixels as another one; remove them", "warning").findings(
            exact
        ),
        *FaultKind(
            "near-duplicate-image",
            "images are nearly the same as an earlier one (frames of a video, or copies); they teach little new",
            "note",
        ).findings(near),
    ]


def find_leaks(train: Named, val: Named) -> list[Finding]:
    """Find images of the validation data that are in the training data too, so that the scores are too high."""
    known = {print_.digest: name for name, print_ in reversed(train)}
    exact = [f"{name} = {known[print_.digest]}" for name, print_ in val if print_.digest in known]
    others = [(name, print_) for name, print_ in val if print_.digest not in known]
    near = [f"{a} ~ {b}" for a, b in _near_pairs(others, train)]
    high = "so the scores will be too high"
    return [
        *FaultKind(
            "leaked-image", f"images for validation have the pixels of a training image, {high}; remove them", "warning"
        ).findings(exact),
        *FaultKind(
            "near-leaked-image",
            f"images for validation are nearly the same as a training image, {high}; keep copies, and frames of one "
            "video, in one part",
            "warning",
        ).findings(near),
    ]


def _near_pairs(images: Named, others: Named | None) -> Iterator[tuple[str, str]]:
    """Return each image with a nearly equal one of `others`; without `others`, with an earlier one of `images`."""
    rows, names = _signs(images)
    columns, other_names = (rows, names) if others is None else _signs(others)
    if not len(rows) or not len(columns):
        return
    slow = max(len(rows), len(columns)) >= _SLOW
    for start in tqdm(range(0, len(rows), _BLOCK), desc="comparing images", unit="block", disable=not slow):
        equal = (rows[start : start + _BLOCK] @ columns.T + _BITS) / 2  # bits in common
        if others is None:
            equal[np.arange(len(columns)) >= np.arange(start, start + len(equal))[:, None]] = 0
        best = equal.argmax(axis=1)
        for row in (equal[np.arange(len(equal)), best] >= _BITS - NEAR).nonzero()[0]:
            yield names[start + row], other_names[best[row]]


def _signs(images: Named) -> tuple[np.ndarray, list[str]]:
    """Return (N, 256) float32 of +1 and -1, and the names; flat images are left out."""
    kept = [(name, print_.bits) for name, print_ in images if print_.bits is not None]
    bits = np.array([bits for _, bits in kept], dtype=np.float32).reshape(-1, _BITS)
    return bits * 2 - 1, [name for name, _ in kept]
