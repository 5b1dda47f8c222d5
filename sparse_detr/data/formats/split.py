"""Divide a data set into training and validation by image, the same in every run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path, PurePosixPath

from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically


@dataclass(frozen=True)
class Split:
    """Which images are for training and which for validation, by file name.

    Args:
        share: of the images that are for validation.
        seed: another one gives another division.
    """

    share: float
    seed: int
    train: list[str]
    val: list[str]


def make_split(names: Sequence[str], *, share: float, seed: int) -> Split:
    """Divide file names; each name has a random number that depends on itself and the seed alone.

    The images with the lowest numbers are for validation: rounded, at least one, and not all.

    Raises:
        UserError: the share is not between 0 and 1, or there are fewer than two images.
    """
    _check(names, share)
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    val = set(sorted(names, key=lambda name: (_number(name, seed), name))[:count])
    return Split(share, seed, sorted(set(names) - val), sorted(val))


def _check(names: Sequence[str], share: float) -> None:
    if not 0 < share < 1:
        raise UserError(f"the share for validation is {share}; give a number between 0 and 1, such as 0.2")
    if len(names) < 2:
        raise UserError(f"{len(names)} image cannot be divided into training and validation; name validation data")


def _number(path: str, seed: int) -> float:
    """Return a number from 0 to 1 that depends on the seed and the file's own name alone, not on its folder."""
    name = PurePosixPath(path).name
    return int.from_bytes(sha256(f"{seed}:{name}".encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def saved_split(path: Path, names: Sequence[str], *, share: float, seed: int) -> Split:
    """Return the split in a file; without one, make it and write it.

    Images that are new since then get a side by their own number; all others keep theirs, also where the names start
    from another folder, since images were added beside it or removed.

    Raises:
        UserError: the file is of another share or seed, or cannot be read.
    """
    old = _read(path) if path.is_file() else None
    if old is not None:
        old = _from_folder_of(set(names), old)
    if old is None:  # or of other data
        split = make_split(names, share=share, seed=seed)
        write_text_atomically(path, json.dumps(asdict(split), indent=1) + "\n")
        return split
    if (old.share, old.seed) != (share, seed):
        raise UserError(
            f"{path} divides these data with share {old.share} and seed {old.seed}, not {share} and {seed}; go on with "
            "those, or choose another output folder"
        )
    known = {*old.train, *old.val}
    new = [name for name in names if name not in known]
    if not new and known <= set(names):
        return old
    val = sorted({*old.val, *(name for name in new if _number(name, seed) < share)} & set(names))
    split = Split(share, seed, sorted(set(names) - set(val)), val)
    if not split.val or not split.train:
        raise UserError(f"{path} leaves no image for training or none for validation; choose another output folder")
    write_text_atomically(path, json.dumps(asdict(split), indent=1) + "\n")
    return split


def _from_folder_of(names: Collection[str], old: Split) -> Split | None:
    """Return an old split with names that start from the same folder as `names`; None if it is of other images.

    The common folder of all images may have moved up or down: the same image is `a/1.png` in one and `1.png` in the
    other. It has moved by the prefix that most names agree in.
    """
    known = {*old.train, *old.val}
    moves = Counter(("", name[:start]) for name in names for start in _starts(name) if name[start:] in known)
    moves.update((name[:start], "") for name in known for start in _starts(name) if start and name[start:] in names)
    if not moves:
        return None
    less, more = min(moves, key=lambda move: (-moves[move], len("".join(move)), move))
    train, val = (
        [more + name.removeprefix(less) for name in side if name.startswith(less)] for side in (old.train, old.val)
    )
    return replace(old, train=train, val=val)


def _starts(name: str) -> Iterator[int]:
    """Return where a path and each shorter path at its end start."""
    yield 0
    yield from (place + 1 for place, character in enumerate(name) if character == "/")


def _read(path: Path) -> Split:
    try:
        return Split(**json.loads(path.read_bytes()))
    except (ValueError, TypeError):
        raise UserError(f"{path} is no split that this program has written; remove it to make a new one") from None
