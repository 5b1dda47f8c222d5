"""Find the files of a data set: images by the names that annotations give them, and the parts that names tell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from sparse_detr.errors import UserError
from sparse_detr.files import IMAGE_SUFFIXES

ALL = "all"
PARTS = {
    "train": {"train", "training", "trainval"},
    "val": {"val", "valid", "validation", "dev"},
    "test": {"test", "testing"},
}
_ANNOTATION_FOLDERS = {"annotations", "annotation", "labels"}
IMAGE_FOLDERS = ("images", "JPEGImages", "imgs", "img", "data")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file without spaces at their ends; empty ones are left out.

    Raises:
        UserError: the file cannot be read, or is no text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; check the path") from None
    if "\0" in text:
        raise UserError(f"{path} is no text: it holds a zero byte; save it as UTF-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def with_slashes(path: str) -> str:
    """Return a path with the separators of this system; one that was written on Windows has others."""
    return path.replace("\\", "/")


def part_of(*names: str) -> str:
    """Return the part that the first telling name names, such as "val" of `instances_val2017`; "all" if none does."""
    for name in names:
        words = set(re.split(r"[^a-z]+", name.lower()))
        for part, known in PARTS.items():
            if words & known:
                return part
    return ALL


def by_part(folders: Iterable[Path]) -> dict[str, list[Path]]:
    """Return folders by the part that their own names tell; those that tell none are of "all"."""
    found: dict[str, list[Path]] = {}
    for folder in folders:
        found.setdefault(part_of(folder.name), []).append(folder)
    return found


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def files_with(folder: Path, *suffixes: str) -> list[Path]:
    """Return the files of a folder with one of the suffixes, sorted; hidden ones are left out."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted."""
    return sorted(
        Path(parent, name)
        for parent, names in walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
    )


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Return each folder with the names of its files; links are followed, each folder is entered once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield parent, [name for name in names if not name.startswith(".")]


class ImageFinder:
    """Finds images by the names in annotation files, which may lack the folder or the suffix.

    Args:
        near: folders to look into first.
        root: the folder to search through for what is not there.
    """

    def __init__(self, near: Sequence[Path], root: Path) -> None:
        self.near, self.root = list(dict.fromkeys(near)), root

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in images_below(self.root):
            for key in (path.name, path.stem):
                found.setdefault(key, []).append(path)
        return found

    def find(self, name: str) -> Path | None:
        """Return the image with this name, path or stem; None if there is none, or several equally near."""
        name = with_slashes(name.strip())
        return next((path for path in self._near(name) if os.path.isfile(path)), None) or self._anywhere(Path(name))

    def _near(self, name: str) -> Iterator[Path]:
        suffixes = ("",) if Path(name).suffix.lower() in IMAGE_SUFFIXES else tuple(sorted(IMAGE_SUFFIXES))
        for folder in self.near:
            for suffix in suffixes:
                yield folder / (name + suffix)

    def _anywhere(self, name: Path) -> Path | None:
        known = self._by_name.get(name.name, [])
        with_end = [path for path in known if path.parts[-len(name.parts) :] == name.parts]
        for paths in (with_end, known):
            if len(paths) == 1:
                return paths[0]
        return None

    def missing(self, name: str) -> Path:
        """Return where an image that was not found should be."""
        return self.near[0] / with_slashes(name.strip())


def root_of(annotations: Path) -> Path:
    """Return the folder of the data set that an annotation file, named itself, belongs to."""
    folder = annotations.absolute().parent
    return folder.parent if folder.name.lower() in _ANNOTATION_FOLDERS else annotations.parent


def near_folders(annotations: Path, root: Path, part: str) -> list[Path]:
    """Return the folders where the images of an annotation file usually lie, nearest first."""
    beside = [annotations.parent, annotations.parent.parent] if annotations.parent != root else [root]
    words = [part, annotations.stem, *re.split(r"[_.-]+", annotations.stem)]
    folders = [annotations.parent]
    for base in dict.fromkeys([*beside, root]):
        folders += [base / name for name in IMAGE_FOLDERS]
        folders += [base / name / word for name in IMAGE_FOLDERS for word in words]
        folders += [base / word for word in words]
        folders.append(base)
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def shortened(paths: Iterable[Path], root: Path, number: int = 8) -> str:
    """Return paths relative to a folder, as a list for a message."""
    names = [os.path.relpath(path, root) for path in paths]
    return ", ".join(names[:number]) + (", ..." if len(names) > number else "")
