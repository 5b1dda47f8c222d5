"""Find COCO files in a folder, and the folder of the images of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from sparse_detr.data.annotations import CocoFile, is_image, read_coco_file
from sparse_detr.data.findings import Finding
from sparse_detr.data.formats.files import (
    ALL,
    ImageFinder,
    files_with,
    near_folders,
    part_of,
    root_of,
    shortened,
    subfolders,
    with_slashes,
)
from sparse_detr.data.formats.part import Part, of_no_part
from sparse_detr.errors import UserError

NAME = "COCO"
LOOKED_FOR = "a .json file with 'images', 'annotations' and 'categories', here, in annotations/ or in a folder a part"

_HEAD = 2**16
_TRIED = 20  # images that are looked for in each folder


def find_in(folder: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part of a folder with COCO files; {} if there is none.

    Raises:
        UserError: several files are the same part.
    """
    files = [path for place in (folder, *subfolders(folder)) for path in files_with(place, ".json") if _is_coco(path)]
    by_part: dict[str, list[Path]] = {}
    for path in files:
        named = (path.stem,) if path.parent == folder else (path.stem, path.parent.name)
        by_part.setdefault(part_of(*named), []).append(path)
    others = by_part.get(ALL, [])
    return {
        part: partial(read, _one(paths, folder), folder, part, of_no_part(part, "files", others))
        for part, paths in by_part.items()
    }


def find_file(path: Path) -> dict[str, Callable[[], Part]]:
    """Return the reader of one COCO file."""
    return {ALL: partial(read, path, root_of(path), part_of(path.stem, path.parent.name))}


def _one(paths: list[Path], folder: Path) -> Path:
    """Return the file of a part; of several the one with boxes, as COCO names it."""
    with_boxes = [path for path in paths if path.stem.startswith("instances")]
    chosen = with_boxes if len(paths) > 1 else paths
    if len(chosen) != 1:
        raise UserError(f"{folder} has several COCO files for one part: {shortened(paths, folder)}; name one of them")
    return chosen[0]


def _is_coco(path: Path) -> bool:
    """Return whether a JSON file seems to be a COCO file; its first 64 KiB are read."""
    with path.open("rb") as file:
        head = file.read(_HEAD).replace(b"\0", b"")
    if not head.lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t").startswith(b"{"):
        return False
    return any(f'"{key}"'.encode() in head for key in ("images", "annotations"))  # notes.json of YOLO has categories


def read(path: Path, root: Path, part: str, findings: Sequence[Finding] = ()) -> Part:
    """Read a COCO file and find the folder that its file names start from.

    Raises:
        UserError: the file cannot be used, or no folder holds its images.
    """
    coco = read_coco_file(path)
    return _part(coco, _image_folder(coco, root, part), findings)


def read_with_images(path: Path, images: Path) -> Part:
    """Read a COCO file whose file names start from a known folder."""
    return _part(read_coco_file(path), images)


def _part(coco: CocoFile, folder: Path, findings: Sequence[Finding] = ()) -> Part:
    images = [_with_slashes(item, folder) for item in coco.images]
    turned = sum(new is not old for new, old in zip(images, coco.images))
    message = "file names have the \\ of Windows and are read with /"
    found = [*findings, *([Finding("names-of-windows", "note", turned, message)] if turned else [])]
    content = {"images": images, "annotations": coco.annotations, "categories": coco.categories}
    return Part(coco.path, content, folder, found, json_file=None if turned else coco.path)


def _with_slashes(item: Any, folder: Path) -> Any:
    """Return an image whose name was written on Windows with the name that it has here; another item as it is."""
    if not is_image(item) or "\\" not in item["file_name"] or os.path.isfile(folder / item["file_name"]):
        return item
    return {**item, "file_name": with_slashes(item["file_name"])}


def _image_folder(coco: CocoFile, root: Path, part: str) -> Path:
    names = [image["file_name"] for image in coco.sound_images.values()][:_TRIED]
    folders = near_folders(coco.path, root, part)
    found = {folder: sum(_is_there(folder, name) for name in names) for folder in folders}
    best = max(folders, key=lambda folder: found[folder], default=coco.path.parent)
    if found.get(best) or not names:
        return best
    elsewhere = _folder_of_any(names, ImageFinder(folders or [root], root))
    if elsewhere is not None:
        return elsewhere
    raise UserError(
        f"no image of {coco.path} is found: looked for {', '.join(names[:2])} in {shortened(folders, root)} and below "
        f"{root}; name both, with --train-json and --train-images, or --val-json and --val-images"
    )


def _is_there(folder: Path, name: str) -> bool:
    return os.path.isfile(folder / name) or os.path.isfile(folder / with_slashes(name))


def _folder_of_any(names: list[str], finder: ImageFinder) -> Path | None:
    """Return the folder from which the file name of an image leads to an image that was found elsewhere."""
    for name in names:
        path, steps = finder.find(name), PurePosixPath(with_slashes(name)).parts
        if path is not None and path.parts[-len(steps) :] == steps:
            return path.parents[len(steps) - 1]
    return None
