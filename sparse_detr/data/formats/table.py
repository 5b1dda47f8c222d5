"""Read a CSV table: a row for each box, a header that names the columns.

The columns may have several names (`COLUMNS`), in any order and case; others are ignored. Boxes are two corners, or x,
y, width, height. A row without numbers is an image without objects. Separators are a comma, a semicolon or a tab.
"""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from sparse_detr.data.findings import NUM_EXAMPLES, FaultKind, Finding
from sparse_detr.data.formats.files import (
    ALL,
    ImageFinder,
    files_with,
    images_below,
    near_folders,
    part_of,
    root_of,
    shortened,
    subfolders,
)
from sparse_detr.data.formats.part import LabelledBox, Part, Picture, make_part, of_no_part, read_numbers, unreadable
from sparse_detr.errors import UserError

NAME = "CSV"
LOOKED_FOR = "a .csv file with a header such as file,x1,y1,x2,y2,class, here, in annotations/ or in a folder a part"

COLUMNS = {
    "file": ("file", "filename", "file_name", "image", "image_name", "image_path", "path", "image_id"),
    "class": ("class", "label", "class_name", "label_name", "category", "name"),
    "part": ("split", "part", "subset"),
}
BOXES = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("left", "top", "width", "height"),
)
_HEADER = "a CSV file needs a column with the file, one with the class, and four such as x1,y1,x2,y2 or x,y,w,h"


@dataclass(frozen=True)
class _Header:
    """The columns of a table, as they are written."""

    file: str
    label: str
    sides: tuple[str, ...]
    part: str | None

    @property
    def has_corners(self) -> bool:
        return self.sides[2].lower() not in ("w", "width")


def find_in(folder: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part of a folder with CSV files; {} if none has a usable header."""
    places = (folder, *subfolders(folder))
    files = [path for place in places for path in files_with(place, ".csv", ".tsv") if _header(path) is not None]
    parts: dict[str, Callable[[], Part]] = {}
    of_none: list[Finding] = []
    for path in files:
        named = (path.stem,) if path.parent == folder else (path.stem, path.parent.name)
        found, findings = _parts_of(path, folder, part_of(*named))
        if parts.keys() & found.keys():
            raise UserError(f"{folder} has several CSV files for one part: {shortened(files, folder)}; name one")
        parts |= found
        of_none += findings
    return _told(parts, of_none)


def find_file(path: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part of one table.

    Raises:
        UserError: its header lacks a column.
    """
    if _header(path) is None:
        raise UserError(f"{path} has the columns {', '.join(_columns(path)) or '(none)'}; {_HEADER}")
    return _told(*_parts_of(path, root_of(path), ALL))


def _parts_of(path: Path, root: Path, part: str) -> tuple[dict[str, Callable[[], Part]], list[Finding]]:
    """Return a reader for each part of a table, and a warning about what is of no part."""
    header = _header(path)
    if header is None or header.part is None:
        return {part: partial(_read, path, root, part)}, of_no_part("train", "files", [path] if part == ALL else [])
    counts = Counter((row.get(header.part) or "").strip() for row in _rows(path))
    values: dict[str, list[str]] = {}
    for value in counts:
        values.setdefault(part_of(value), []).append(value)
    parts: dict[str, Callable[[], Part]] = {
        name: partial(_read, path, root, name, frozenset(chosen)) for name, chosen in values.items()
    }
    return parts, _rows_of_no_part(header.part, {value: counts[value] for value in values.get(ALL, [])})


def _rows_of_no_part(column: str, counts: Mapping[str, int]) -> list[Finding]:
    message = f"rows have a {column} with none of the words train, val and test; training leaves them out"
    examples = tuple(f"{value!r}: {count}" for value, count in counts.items())[:NUM_EXAMPLES]
    return [Finding("no-part", "warning", sum(counts.values()), message, examples)] if counts else []


def _told(parts: dict[str, Callable[[], Part]], findings: Sequence[Finding]) -> dict[str, Callable[[], Part]]:
    """Return the readers; that of the part "train" tells the findings too."""
    return {**parts, "train": partial(parts["train"], findings=findings)} if "train" in parts else parts


def _delimiter(first_line: str) -> str:
    return max(",;\t", key=first_line.count)


def _columns(path: Path) -> list[str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(2**16)
    except UnicodeDecodeError:
        return []
    return [name.strip() for name in next(csv.reader([line], delimiter=_delimiter(line)), [])]


def _header(path: Path) -> _Header | None:
    columns = {name.lower(): name for name in _columns(path)}

    def first(kind: str) -> str | None:
        return next((columns[name] for name in COLUMNS[kind] if name in columns), None)

    sides = next((tuple(columns[name] for name in names) for names in BOXES if set(names) <= columns.keys()), None)
    file, label = first("file"), first("class")
    return _Header(file, label, sides, first("part")) if file and label and sides else None


def _rows(path: Path) -> Iterator[Mapping[str, str | None]]:
    """Return the rows by column.

    Raises:
        UserError: the file is no text in UTF-8, or no table.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter=_delimiter(line), skipinitialspace=True)
            names = [name.strip() for name in next(reader)]
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield {**dict.fromkeys(names), **dict(zip(names, cells)), "": str(reader.line_num)}
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as a table: {error}; write it again") from None


@dataclass
class _Table:
    """The boxes by file, and the rows that cannot be read."""

    path: Path
    header: _Header
    boxes: dict[str, list[LabelledBox]] = field(default_factory=dict)
    faulty: list[str] = field(default_factory=list)

    def add(self, row: Mapping[str, str | None]) -> None:
        """Add a row; one without numbers and class is an image without objects."""
        file, label = ((row.get(name) or "").strip() for name in (self.header.file, self.header.label))
        texts = [(row.get(name) or "").strip() for name in self.header.sides]
        where = f"{self.path.name}:{row['']}"
        if not file or "\0" in file:
            self.faulty.append(f"{where}: no file")
            return
        boxes = self.boxes.setdefault(file, [])
        if not any(texts):
            return
        try:
            numbers = read_numbers(texts)
            if not label:
                raise ValueError("no class")
        except ValueError as error:
            self.faulty.append(f"{where}: {error}")
            return
        x1, y1, x2, y2 = numbers
        corners = (x1, y1, x2, y2) if self.header.has_corners else (x1, y1, x1 + x2, y1 + y2)
        boxes.append(LabelledBox(label, corners))


def _read(
    path: Path, root: Path, part: str, only: frozenset[str] | None = None, findings: Sequence[Finding] = ()
) -> Part:
    """Read a table, or its rows whose value of the part is one of `only`."""
    header = _header(path)
    assert header is not None, f"{path} was recognised"
    table = _Table(path, header)
    for row in _rows(path):
        if only is None or (row.get(header.part or "") or "").strip() in only:
            table.add(row)
    near = near_folders(path, root, part)
    finder = ImageFinder(near or [root], root)
    boxes_of: dict[str, list[LabelledBox]] = {}  # a file may be written in several ways
    for name, boxes in table.boxes.items():
        boxes_of.setdefault(os.path.abspath(finder.find(name) or finder.missing(name)), []).extend(boxes)
    pictures = [Picture(Path(file), boxes) for file, boxes in boxes_of.items()]
    without_row: list[str] = []
    if (
        only is None and part == part_of(path.stem, path.parent.name) == ALL
    ):  # else the other images may be those of other parts
        used = {picture.file.resolve() for picture in pictures}
        without_row = [image.name for image in images_below(root) if image.resolve() not in used]
    left_out = "images have no row and are left out; a row without numbers marks an empty image"
    found = [
        *findings,
        *unreadable("rows", table.faulty, "correct or remove them"),
        *FaultKind("image-without-annotation", left_out, "warning").findings(without_row),
    ]
    return make_part(path, pictures, None, found)
