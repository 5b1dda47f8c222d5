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
    by_part,
    files_with,
    images_below,
    read_lines,
    subfolders,
    walk,
    with_slashes,
)
from sparse_detr.data.formats.part import (
    LabelledBox,
    Part,
    Picture,
    make_part,
    of_no_part,
    read_numbers,
    unreadable,
    with_progress,
)
from sparse_detr.errors import UserError
from sparse_detr.files import IMAGE_SUFFIXES

NAME = "YOLO"
LOOKED_FOR = "a .yaml file with 'names', or images/ and labels/ with .txt files and classes.txt"

_NAME_FILES = ("classes.txt", "obj.names", "labels.txt", "predefined_classes.txt")
_NO_LABELS = {*_NAME_FILES, "train.txt", "val.txt", "test.txt", "readme.txt", "readme.roboflow.txt"}
_YAML_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_NO_PATH = ("", "~", "null", "Null", "NULL")  # YAML's nothing
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
    return _readers(folder, _folders_by_part(folder), None)


def find_file(path: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part that a data.yaml names and that exists.

    Raises:
        UserError: no folder that it names exists, or only some of a list; the reader of the part "train", if only
            others exist.
    """
    content = _yaml(path)
    classes, places = _classes_of_yaml(path, content), _places(path, content)
    named = {key: content[key] for key in _YAML_PARTS if _texts(content, key)}
    missing = {key: value for key, value in named.items() if _YAML_PARTS[key] not in places}
    found = places or _folders_by_part(path.parent)
    if not found:
        names = ", ".join(f"{key}: {value}" for key, value in named.items())
        raise UserError(f"{path} names no folder that exists ({names or 'no train, val or test'}); correct its paths")
    parts = _readers(path, found, classes, _missing_parts(path, missing))
    if places and "train" in missing:
        parts["train"] = partial(_refuse, f"{path} names train: {missing['train']}, which does not exist; correct it")
    return parts


def _refuse(message: str) -> Part:
    raise UserError(message)


def _missing_parts(path: Path, missing: dict[str, Any]) -> list[Finding]:
    """Return findings about the parts that a data.yaml names and that do not exist; none needs the part "test"."""
    message = f"parts that {path} names do not exist; correct or remove their paths"
    return [
        finding
        for severity, keys in (("warning", missing.keys() - {"test"}), ("note", missing.keys() & {"test"}))
        for finding in FaultKind("missing-part", message, severity).findings(
            [f"{key}: {missing[key]}" for key in sorted(keys)]
        )
    ]


def _yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file, all values as they are written: `no` is a text; {} if it is none."""
    try:
        content = yaml.load(path.read_bytes(), yaml.BaseLoader)
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _classes_of_yaml(path: Path, content: dict[str, Any]) -> _Classes:
    names = content.get("names")
    indices = [str(index) for index in range(len(names or ()))]
    if isinstance(names, dict) and set(names) == set(indices):
        names = [names[index] for index in indices]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path} has no usable 'names'; give the class names as a list, or with the indices 0, 1, ...")
    if content.get("nc", "") not in ("", str(len(names))):
        raise UserError(f"{path} has nc {content['nc']} and {len(names)} names; correct one of them")
    shape = content.get("kpt_shape")
    is_shape = isinstance(shape, list) and len(shape) == 2 and all(str(side).isdecimal() for side in shape)
    numbers = int(shape[0]) * int(shape[1]) if is_shape else 0
    return _Classes(path, names, numbers)


def _texts(content: dict[str, Any], key: str) -> list[str]:
    """Return the folders or list files that a data.yaml names for a part."""
    named = content.get(key)
    texts = named if isinstance(named, list) else [named]
    return [text for text in texts if isinstance(text, str) and text not in _NO_PATH]


def _places(path: Path, content: dict[str, Any]) -> dict[str, list[Path]]:
    """Return the folders or list files of each part that exist.

    Raises:
        UserError: only some of a part's list exist.
    """
    bases = [path.parent]
    if isinstance(given := content.get("path"), str) and given not in _NO_PATH:
        bases = [Path(given).expanduser() if os.path.isabs(os.path.expanduser(given)) else path.parent / given, *bases]
    places: dict[str, list[Path]] = {}
    for key, part in _YAML_PARTS.items():
        found = {text: _existing(text, bases) for text in _texts(content, key)}
        missing = [text for text, place in found.items() if place is None]
        if missing and len(missing) < len(found):
            raise UserError(f"{path} names {', '.join(missing)} for {key}, which does not exist; correct or remove it")
        if places_of_key := [place for place in found.values() if place is not None]:
            places.setdefault(part, []).extend(places_of_key)
    return places


def _existing(text: str, bases: Sequence[Path]) -> Path | None:
    """Return the folder or file that a data.yaml names.

    Roboflow writes `../train/images` for a folder beside the file, and `path` may be of another machine.
    """
    inside = with_slashes(text).removeprefix("../")
    names = dict.fromkeys((text, with_slashes(text), inside, f"{inside}/images", f"images/{inside}"))
    tries = [base / name for base in bases for name in names]
    return next((path for path in tries if images_or_list(path)), None)


def images_or_list(path: Path) -> bool:
    """Return whether it is a file, or a folder with an image at any depth."""
    return os.path.isfile(path) or (os.path.isdir(path) and bool(images_below(path)))


def _readers(
    source: Path, places: dict[str, list[Path]], classes: _Classes | None, findings: Sequence[Finding] = ()
) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part; that of the training data tells the findings."""
    others = places.get(ALL, [])
    teller = next((part for part in ("train", ALL, *places) if part in places), None)
    parts: dict[str, Callable[[], Part]] = {}
    for part, found in places.items():
        told = [*(findings if part == teller else ()), *of_no_part(part, "folders and images", others)]
        parts[part] = partial(_read, source, found, classes, told)
    return parts


def _folders_by_part(folder: Path) -> dict[str, list[Path]]:
    """Return the folders of images with labels, or single images, by part; without a data.yaml.

    Raises:
        UserError: a folder of a part is a data set with parts.
    """
    images = folder / "images"
    single = [image for image in files_in(folder) if _label_of(image).is_file()]
    if images.is_dir() and (folder / "labels").is_dir() and not single:
        places = by_part(subfolders(images))
        others = [path for path in [*places.pop(ALL, []), *files_in(images)] if images_or_list(path)]
        return {**places, ALL: others} if places and others else places or {ALL: [images]}
    named = by_part(subfolders(folder))
    unnamed = named.pop(ALL, [])
    if not named:
        return {ALL: [folder]} if single or _has_texts_beside(folder) else {}
    places = {part: found for part, paths in named.items() if (found := _with_labels(paths))}
    if places or single:
        places[ALL] = [*(place for path in unnamed for place in _folders_by_part(path).get(ALL, [])), *single]
    return {part: found for part, found in places.items() if found}


def _with_labels(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of images with labels among the folders of one part."""
    found = []
    for folder in folders:
        places = _folders_by_part(folder)
        if places.keys() - {ALL}:
            raise UserError(f"{folder} is a data set with the parts {', '.join(places)}; name it itself")
        found += places.get(ALL, [])
    return found


def _has_texts_beside(folder: Path) -> bool:
    """Return whether an image at any depth has a text file beside it."""
    for _, files in walk(folder):
        names = set(files)
        stems = {stem for stem, suffix in map(os.path.splitext, files) if suffix.lower() in IMAGE_SUFFIXES}
        if any(f"{stem}.txt" in names for stem in stems):
            return True
    return False


def files_in(folder: Path) -> list[Path]:
    """Return the image files of a folder itself."""
    return files_with(folder, *IMAGE_SUFFIXES)


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


def _classes_of(source: Path, places: Sequence[Path]) -> _Classes:
    """Return the classes that are found for all folders of a part.

    Raises:
        UserError: some have other classes.
    """
    folders = dict.fromkeys(place if place.is_dir() else place.parent for place in places)
    first, *others = (_find_classes(folder) for folder in folders)
    for other in others:
        if other.names != first.names:
            raise UserError(
                f"{source} has one part in several folders, whose classes differ in {first.source} and {other.source}; "
                "give them the same classes, or name one of the folders"
            )
    return first


def _read(source: Path, places: Sequence[Path], classes: _Classes | None, findings: Sequence[Finding]) -> Part:
    """Read images, and those of folders and list files, with their labels."""
    images = list(dict.fromkeys(image for place in places for image in _images_of(place)))
    if not images:
        raise UserError(f"{source} names {', '.join(map(str, places))}, where no image is; correct the path")
    labels = _Labels(classes or _classes_of(source, places))
    pictures = [
        Picture(image, labels.read(_label_of(image), image.name)) for image in with_progress(images, "reading labels")
    ]
    texts = {_label_of(image) for image in images}
    folders = sorted({path.parent for path in texts}) if all(place.is_dir() for place in places) else []
    others = [p for folder in folders for p in files_with(folder, ".txt") if p.name.lower() not in _NO_LABELS]
    without_image = [path.name for path in others if path not in texts]
    return make_part(source, pictures, labels.classes.names, [*findings, *labels.findings(len(images), without_image)])


def _images_of(place: Path) -> list[Path]:
    """Return the images in a folder, those that a text file lists, one a line, or the image itself."""
    if place.is_dir():
        return images_below(place)
    if place.suffix.lower() in IMAGE_SUFFIXES:
        return [place]
    return [_listed(place.parent, line) for line in read_lines(place)]


def _listed(folder: Path, line: str) -> Path:
    """Return the image that a line of a list names."""
    image = Path(os.path.normpath(folder / line))
    return image if "\\" not in line or image.is_file() else Path(os.path.normpath(folder / with_slashes(line)))
