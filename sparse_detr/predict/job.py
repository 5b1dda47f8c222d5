"""A run over many pictures, divided into shards: each is detected, written whole, and never done again.

    DIR/predict.json          what the run is of; a call with other settings or pictures is refused
    DIR/shards/00007.json     the detections of a shard; it is there as a whole or not at all

Several processes or machines may share a run: process i of n does every n-th shard. Whoever finds all shards done
writes the joint results.
"""

from __future__ import annotations

import hashlib
import json
import math
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_text_atomically

RECORD, SHARDS = "predict.json", "shards"


@dataclass(frozen=True)
class Found:
    """What was found in one picture.

    Args:
        number: of the picture in the run, from 0.
        name: of the picture.
        width, height: in pixels; 0 for a picture that cannot be used.
        boxes: x0, y0, x1, y1 in pixels.
        scores: best first.
        labels: class indices.
        problem: why the picture cannot be used; "" if it can.
    """

    number: int
    name: str
    width: int = 0
    height: int = 0
    boxes: Sequence[Sequence[float]] = ()
    scores: Sequence[float] = ()
    labels: Sequence[int] = ()
    problem: str = ""


@dataclass(frozen=True)
class Part:
    """The share of the work that one of several processes does: every `number`-th shard from `index` on, from 1."""

    index: int = 1
    number: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `2/8`.

        Raises:
            UserError: the text names no part.
        """
        index, _, number = text.partition("/")
        if not (index.isdecimal() and number.isdecimal() and 1 <= int(index) <= int(number)):
            raise UserError(f"--shard {text} is no part of the work; give i/n, such as 1/4 to 4/4 for four processes")
        return cls(int(index), int(number))


class Job:
    """The shards of a run in its output folder.

    Args:
        folder: of the output; it is made.
        names: of all pictures.
        setting: what all detections of the run have in common, such as weights and budget.
        class_names: by class index.
        shard_size: pictures of a shard.
        stamps: size and time of change of the files that the pictures are in. They tell other pictures of the same
            names; a path would not do, since each machine may see the files under another one.

    Attributes:
        stems: of every picture, the path of its results without suffix.

    Raises:
        UserError: the folder holds another run, or cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        setting: dict[str, Any],
        class_names: Sequence[str],
        shard_size: int,
        stamps: Sequence[Any] = (),
    ) -> None:
        self.folder, self.names, self.shard_size = folder, names, shard_size
        self.stems = stems_of(names)
        self.class_names = list(class_names)
        digest = hashlib.sha256(json.dumps([list(names), list(stamps)]).encode()).hexdigest()
        record = {
            "setting": {**setting, "shard_size": shard_size},
            "class_names": self.class_names,
            "pictures": len(names),
            "pictures_sha256": digest,
        }
        make_folder(folder / SHARDS)
        path = folder / RECORD
        if path.is_file():
            _check_same(path, record)
        else:
            write_text_atomically(path, json.dumps(record, indent=1) + "\n")

    def __len__(self) -> int:
        return math.ceil(len(self.names) / self.shard_size)

    def waiting(self, part: Part) -> list[int]:
        """Return the shards of a part that are not done."""
        return [shard for shard in range(part.index - 1, len(self), part.number) if not self.path(shard).is_file()]

    def is_done(self) -> bool:
        """Return whether every shard is done."""
        return all(self.path(shard).is_file() for shard in range(len(self)))

    def pictures(self, shard: int) -> range:
        """Return the numbers of the pictures of a shard."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, len(self.names)))

    def path(self, shard: int) -> Path:
        """Return the file of a shard."""
        return self.folder / SHARDS / f"{shard:05d}.json"

    def write(self, shard: int, found: Sequence[Found]) -> None:
        """Write a shard, which is done from then on."""
        write_text_atomically(self.path(shard), json.dumps([asdict(one) for one in found]) + "\n")

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[Found]:
        """Yield what was found in the pictures from `start` to `stop`, in order; their shards must be done.

        Raises:
            UserError: the file of a shard was changed.
        """
        stop = len(self.names) if stop is None else stop
        for shard in range(start // self.shard_size, math.ceil(stop / self.shard_size)):
            yield from (found for found in self._read_shard(shard) if start <= found.number < stop)

    def _read_shard(self, shard: int) -> list[Found]:
        path = self.path(shard)
        try:
            found = [Found(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} is no shard ({error}); remove it and run the command again") from error
        if [one.number for one in found] != list(self.pictures(shard)):
            raise UserError(f"{path} is not of these pictures; remove it and run the command again")
        return found


def _check_same(path: Path, record: dict[str, Any]) -> None:
    """Raise a `UserError` if a record is of another run."""
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        before, now = _facts(old), _facts(record)
        other_pictures = old["pictures_sha256"] != record["pictures_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no record of `sparse-detr predict` ({error!r}); give another --output") from error
    for name in {**now, **before}:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{path} is of a run with {name} {before.get(name)!r}, not {now.get(name)!r}; give another --output, "
                "or remove that folder"
            )
    if other_pictures:
        raise UserError(
            f"{path} is of {old.get('pictures')} other pictures than these {record['pictures']} (other names, sizes or "
            "times of change); give another --output, or remove that folder"
        )


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """Return the setting and the classes of a record, by the name that a message gives them."""
    names = record["class_names"]
    classes = {f"class {label}": name for label, name in enumerate(names)}
    return {**record["setting"], "a number of classes of": len(names), **classes}


def stems_of(names: Sequence[str]) -> list[str]:
    """Return the path of every picture without its suffix, with it where another would be equal.

    `a.jpg` beside `a.png` are `a.jpg` and `a.png`.
    """
    stems = [posixpath.splitext(name)[0] for name in names]
    counts, whole = Counter(stems), set(names)
    return [
        name if counts[stem] > 1 or stem in whole else stem  # a name without suffix is its own stem
        for name, stem in zip(names, stems, strict=True)
    ]
