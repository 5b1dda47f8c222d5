"""Read YOLO's form: a text file for each image, a line for each object, numbers as shares of the image.

    class x_center y_center width height      a box
    class x1 y1 x2 y2 x3 y3 ...               a polygon, or an oriented box: the box around it is taken

`data.yaml` names the classes and the folders of the parts. An image without a text file has no objects.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sparse_detr.data.findings import FaultKind, Finding, Severity
from sparse_detr.data.formats.files import (
    ALL,
    files_with,
    images_below,
    part_of,
    read_lines,
    subfolders,
)
from sparse_detr.data.formats.part import LabelledBox, Part, Picture, make_part, read_numbers, unreadable, with_progress
from sparse_detr.errors import UserError
from sparse_detr.files import IMAGE_SUFFIXES

NAME = "YOLO"
LOOKED_FOR = "a .yaml file with 'names', or images/ and labels/ with .txt files and classes.txt"

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt")
_NO_LABELS = {*_NAME_FILES, "train.txt", "val.txt", "test.txt", "readme.txt", "readme.roboflow.txt"}
_YAML_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LARGEST_SHARE = 1.5  # rounding puts corners a little beyond 1; numbers above this are pixels


@dataclass(frozen=True)
class _Classes:
    """The class names by index, where they stand, and how many numbers of keypoints follow a box."""

    source: Path
    names: list[str]
    keypoint_numbers: int = 0


def find_in(folder: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part of a folder in YOLO's form; {} if it has none."""
    yamls = [path for path in files_with(folder, ".yaml", ".yml") if "names" in _yaml(path)]
    if len(yamls) > 1:
        raise UserError(f"{folder} has several data files of YOLO: {', '.join(path.name for path in yamls)}; name one")
    if yamls and (parts := find_file(yamls[0])):
        return parts
    return {part: partial(_read, folder, places, None) for part, places in _folders_by_part(folder).items()}


def find_file(path: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part that a data.yaml names and that exists.

    Raises:
        UserError: no folder that it names exists.
    """
    content = _yaml(path)
    classes, places = _classes_of_yaml(path, content), _places(path, content)
    if not places:
        places = _folders_by_part(path.parent)
    if not places:
        named = ", ".join(f"{key}: {content[key]}" for key in _YAML_PARTS if content.get(key))
        raise UserError(f"{path} names no folder that exists ({named or 'no train, val or test'}); correct its paths")
    return {part: partial(_read, path, found, classes) for part, found in places.items()}


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _classes_of_yaml(path: Path, content: dict[str, Any]) -> _Classes:
    names = content.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names or any(isinstance(name, dict | list) for name in names):
        raise UserError(f"{path} has no usable 'names'; give the class names as a list, or with the indices 0, 1, ...")
    if content.get("nc") not in (None, len(names)):
        raise UserError(f"{path} has nc {content['nc']} and {len(names)} names; correct one of them")
    shape = content.get("kpt_shape")
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(isinstance(side, int) for side in shape)
    numbers = shape[0] * shape[1] if is_shape else 0
    return _Classes(path, [str(name) for name in names], numbers)


def _places(path: Path, content: dict[str, Any]) -> dict[str, list[Path]]:
    """Return the folders or list files of each part that exist."""
    bases = [path.parent]
    if isinstance(given := content.get("path"), str):
        bases = [Path(given).expanduser() if os.path.isabs(os.path.expanduser(given)) else path.parent / given, *bases]
    places: dict[str, list[Path]] = {}
    for key, part in _YAML_PARTS.items():
        named = content.get(key)
        texts = [text for text in (named if isinstance(named, list) else [named]) if isinstance(text, str) and text]
        found = [place for text in texts if (place := _existing(text, bases)) is not None]
        if texts and len(found) == len(texts):
            places.setdefault(part, found)
    return places


def _existing(text: str, bases: Sequence[Path]) -> Path | None:
    """Return the folder or file that a data.yaml names.

    Roboflow writes `../train/images` for a folder beside the file, and `path` may be of another machine.
    """
    inside = text.removeprefix("../")
    tries = [base / name for base in bases for name in (text, inside, f"{inside}/images", f"images/{inside}")]
    return next((path for path in tries if images_or_list(path)), None)


def images_or_list(path: Path) -> bool:
    """Return whether it is a file, or a folder with an image at any depth."""
    return os.path.isfile(path) or (os.path.isdir(path) and bool(images_below(path)))


def _folders_by_part(folder: Path) -> dict[str, list[Path]]:
    """Return the folders of images with labels, by part; without a data.yaml."""
    if any(_label_of(image).is_file() for image in files_in(folder)):  # images and texts in one folder
        return {ALL: [folder]}
    images = _sub(folder, "images")
    if images is not None and _sub(folder, "labels") is not None:
        parts = {part_of(path.name): [path] for path in subfolders(images) if part_of(path.name) != ALL}
        return parts or {ALL: [images]}
    named = {part_of(path.name): path for path in subfolders(folder) if part_of(path.name) != ALL}
    inner = {part: _folders_by_part(path).get(ALL) for part, path in named.items()}
    return {part: places for part, places in inner.items() if places}


def files_in(folder: Path) -> list[Path]:
    """Return the image files of a folder itself."""
    return files_with(folder, *IMAGE_SUFFIXES)


def _sub(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_dir() else None


def _label_of(image: Path) -> Path:
    """Return the text file of an image: the last folder `images` of its path becomes `labels`, as in Ultralytics.

    It may also lie beside the image.
    """
    beside = image.with_suffix(".txt")
    parts = list(beside.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    usual = Path(*parts)
    return beside if beside.is_file() and not usual.is_file() else usual


def _find_classes(folder: Path) -> _Classes:
    """Return the classes that a file in the folder, or up to two folders above, names."""
    above = [folder.absolute(), *folder.absolute().parents][:3]
    for place in [*above, *(path / "labels" for path in above)]:
        for path in files_with(place, ".yaml", ".yml"):
            if "names" in (content := _yaml(path)):
                return _classes_of_yaml(path, content)
        for name in _NAME_FILES:
            if (place / name).is_file() and (names := read_lines(place / name)):
                return _Classes(place / name, names)
    raise UserError(
        f"the class names of the YOLO labels in {folder} are not found; looked for data.yaml with 'names' and "
        f"{', '.join(_NAME_FILES)} there and in the folders above; write one name a line into classes.txt"
    )


@dataclass
class _Labels:
    """What was read so far: faults by `file:line`, and how many lines were polygons."""

    classes: _Classes
    faulty: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    in_pixels: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    polygons: int = 0

    def read(self, path: Path, name: str) -> list[LabelledBox]:
        """Read a text file; one that is missing has no boxes."""
        if not path.is_file():
            self.unlabelled.append(name)
            return []
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (UnicodeDecodeError, OSError):
            self.faulty.append(f"{path}: no text in UTF-8")
            return []
        boxes = [self._read_line(line, f"{path}:{n}") for n, line in enumerate(lines, start=1) if line.strip()]
        return [box for box in boxes if box is not None]

    def _read_line(self, line: str, where: str) -> LabelledBox | None:
        first, *texts = line.split()
        try:
            (index,), numbers = read_numbers([first]), read_numbers(texts)
            corners = self._corners(numbers)
        except ValueError as error:
            self.faulty.append(f"{where}: {error}")
            return None
        if index not in range(len(self.classes.names)):
            self.unknown.append(f"{where}: {first}")
            return None
        if max(corners) > _LARGEST_SHARE:
            self.in_pixels.append(where)
        return LabelledBox(self.classes.names[int(index)], corners, as_shares=True)

    def _corners(self, numbers: list[float]) -> tuple[float, float, float, float]:
        if len(numbers) == 4 + self.classes.keypoint_numbers:
            x, y, width, height = numbers[:4]
            return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        if len(numbers) < 6 or len(numbers) % 2:
            raise ValueError(f"{len(numbers)} numbers after the class; a box has 4, a polygon 6, 8, 10, ...")
        self.polygons += 1
        xs, ys = numbers[::2], numbers[1::2]
        return (min(xs), min(ys), max(xs), max(ys))

    def findings(self, num_images: int, without_image: list[str]) -> list[Finding]:
        names = f"the {len(self.classes.names)} classes of {self.classes.source}"
        few: Severity = "note" if len(self.unlabelled) * 2 <= num_images else "warning"
        negatives = "images have no file of labels and count as images without objects"
        boxes = "labels are polygons; the box around each is taken"
        return [
            *unreadable("lines of labels", self.faulty, "correct or remove them"),
            *FaultKind("unknown-class", f"labels name a class beyond {names}, which count from 0").findings(
                self.unknown
            ),
            *FaultKind(
                "shares-as-pixels",
                "labels have numbers above 1, but YOLO's numbers are shares: divide by the image's width and height",
                "warning",
            ).findings(self.in_pixels),
            *([Finding("boxes-from-polygons", "note", self.polygons, boxes)] if self.polygons else []),
            *FaultKind("unlabelled-image", negatives, few).findings(self.unlabelled),
            *FaultKind("label-without-image", "files of labels have no image; they are left out", "warning").findings(
                without_image
            ),
        ]


def _read(source: Path, places: Sequence[Path], classes: _Classes | None) -> Part:
    """Read the images of folders and list files with their labels."""
    images = list(dict.fromkeys(image for place in places for image in _images_of(place)))
    if not images:
        raise UserError(f"{source} names {', '.join(map(str, places))}, where no image is; correct the path")
    labels = _Labels(classes or _find_classes(places[0] if places[0].is_dir() else places[0].parent))
    pictures = [
        Picture(image, labels.read(_label_of(image), image.name)) for image in with_progress(images, "reading labels")
    ]
    texts = {_label_of(image) for image in images}
    folders = sorted({path.parent for path in texts}) if all(place.is_dir() for place in places) else []
    others = [p for folder in folders for p in files_with(folder, ".txt") if p.name.lower() not in _NO_LABELS]
    findings = labels.findings(len(images), [path.name for path in others if path not in texts])
    return make_part(source, pictures, labels.classes.names, findings)


def _images_of(place: Path) -> list[Path]:
    """Return the images in a folder, or those that a text file lists, one a line."""
    if place.is_dir():
        return images_below(place)
    return [Path(os.path.normpath(place.parent / line)) for line in read_lines(place)]
