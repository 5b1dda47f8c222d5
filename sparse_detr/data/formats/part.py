"""A part of a data set, such as its training part, as the content of a COCO file."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from sparse_detr.data.annotations import CONVERTER, is_category, is_image, needs_box
from sparse_detr.data.findings import FaultKind, Finding
from sparse_detr.data.images import DECODING_ERRORS, upright_size
from sparse_detr.errors import UserError

T = TypeVar("T")

# YOLO's shares are written with six decimals: a corner is known to about a millionth of the image's side.
_ROUNDING = 1e-6
_SLOW = 2000  # files that take seconds to read


@dataclass(frozen=True)
class LabelledBox:
    """A box of a class.

    Args:
        name: of the class.
        corners: x1, y1, x2, y2 in pixels, or as shares of the image's width and height.
        as_shares: which of the two.
    """

    name: str
    corners: tuple[float, float, float, float]
    as_shares: bool = False


@dataclass(frozen=True)
class Picture:
    """An image file with its boxes.

    Args:
        file: the path; it need not exist.
        boxes: in the order of the annotations.
        size: width and height that the annotations record; None if they do not.
    """

    file: Path
    boxes: list[LabelledBox]
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Part:
    """A data set as the content of a COCO file.

    Args:
        source: the file or folder that it was read from, for messages.
        content: of the COCO file: `images`, `annotations` and `categories`.
        images: the folder that its file names start from.
        findings: what the reader found wrong or has decided.
        json_file: the user's own file, if `content` is what it holds.
        fixed_classes: whether the source says which classes there are, in which order; else they are the names of its
            boxes in alphabetical order.
    """

    source: Path
    content: dict[str, Any]
    images: Path
    findings: list[Finding] = field(default_factory=list)
    json_file: Path | None = None
    fixed_classes: bool = True

    @property
    def class_names(self) -> list[str]:
        """The names of the categories in the order of their ids."""
        return [name for _, name in sorted(self._names_by_id.items())]

    @property
    def file_names(self) -> list[str]:
        """The file names of the images, sorted."""
        return sorted({item["file_name"] for item in self.content["images"] if is_image(item)})

    def to_coco(self) -> dict[str, Any]:
        """Return the content of a COCO file that says what it was read from."""
        info = {"description": f"read from {self.source}", "images": str(self.images)}
        if self.json_file is None:
            info["contributor"] = CONVERTER
        return {"info": info, **self.content}

    def with_classes(self, names: Sequence[str]) -> Part:
        """Return the part with these classes, ids from 1 on; boxes keep the names of their classes.

        Raises:
            UserError: the part has boxes of a class that is not among `names`.
        """
        ids = {name: number for number, name in enumerate(names, start=1)}
        used = {name for item in self.content["annotations"] if (name := self._class_of(item)) is not None}
        unknown = sorted(used - ids.keys())
        if unknown:
            raise UserError(
                f"{self.source} has boxes of {', '.join(map(repr, unknown))}, which the other part does not name; "
                f"its classes are {', '.join(names)}"
            )
        annotations = [
            item if (name := self._class_of(item)) is None else {**item, "category_id": ids[name]}
            for item in self.content["annotations"]
        ]
        content = {**self.content, "annotations": annotations, "categories": _categories(names)}
        return replace(self, content=content, json_file=None, fixed_classes=True)

    @cached_property
    def _names_by_id(self) -> dict[int, str]:
        return {item["id"]: item["name"] for item in self.content["categories"] if is_category(item)}

    def _class_of(self, annotation: Any) -> str | None:
        """Return the class of an annotation; None if it names none, which the checks of the data report."""
        number = annotation.get("category_id") if isinstance(annotation, dict) else None
        return self._names_by_id.get(number) if isinstance(number, int) else None

    @property
    def needs_masks(self) -> bool:
        """Whether an annotation has a mask and no box."""
        return any(needs_box(item) and bool(item.get("segmentation")) for item in self.content["annotations"])

    def only(self, file_names: Collection[str]) -> Part:
        """Return the part of the images with these names; ids and classes stay."""
        chosen = set(file_names)
        images = [item for item in self.content["images"] if not is_image(item) or item["file_name"] in chosen]
        left_out = {item["id"] for item in self.content["images"] if is_image(item)}
        left_out -= {item["id"] for item in images if is_image(item)}
        annotations = [item for item in self.content["annotations"] if _image_of(item) not in left_out]
        content = {**self.content, "images": images, "annotations": annotations}
        return replace(self, content=content, json_file=None)


def _image_of(annotation: Any) -> int | None:
    """Return the id of an annotation's image; None if it is no number."""
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return number if isinstance(number, int) else None


def _categories(names: Sequence[str]) -> list[dict[str, Any]]:
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def make_part(
    source: Path, pictures: Iterable[Picture], class_names: Sequence[str] | None, findings: list[Finding]
) -> Part:
    """Return the part of these pictures, sorted by file name, with ids from 1 on.

    The sizes are those of the image files as they are shown (EXIF orientation), read from their headers. If a source
    records another size, that one is kept: the checks of the data then say so, and training skips the image.

    Args:
        class_names: in the order of their ids; None for the names of the boxes in alphabetical order.

    Raises:
        UserError: there is no picture.
    """
    pictures = sorted(pictures, key=lambda picture: picture.file.as_posix())
    if not pictures:
        raise UserError(f"{source} has no image with annotations; check the path")
    root = Path(os.path.commonpath([os.path.abspath(picture.file.parent) for picture in pictures]))
    names = list(class_names) if class_names is not None else sorted({b.name for p in pictures for b in p.boxes})
    ids = {name: number for number, name in enumerate(names, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(with_progress(pictures, "reading sizes"), start=1):
        width, height = _size_of(picture)
        name = Path(os.path.relpath(os.path.abspath(picture.file), root)).as_posix()
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations += [
            _annotation(len(annotations) + offset, number, ids[box.name], _in_pixels(box, width, height))
            for offset, box in enumerate(picture.boxes, start=1)
        ]
    content = {"images": images, "annotations": annotations, "categories": _categories(names)}
    return Part(source, content, root, findings, fixed_classes=class_names is not None)


def _annotation(number: int, image_id: int, category_id: int, corners: Sequence[float]) -> dict[str, Any]:
    x1, y1, x2, y2 = corners
    box = [x1, y1, x2 - x1, y2 - y1]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }


def _in_pixels(box: LabelledBox, width: int, height: int) -> Sequence[float]:
    if not box.as_shares:
        return box.corners
    return [_to_pixels(share, side) for share, side in zip(box.corners, (width, height, width, height))]


def _to_pixels(share: float, side: int) -> float:
    """Return a share in pixels; the whole pixel where the six decimals of a share cannot tell it from one."""
    pixels = share * side
    whole = round(pixels) if abs(pixels) < 2**53 else pixels
    return float(whole) if abs(pixels - whole) <= _ROUNDING * side else pixels


def _size_of(picture: Picture) -> tuple[int, int]:
    """Return width and height of a picture; of one that cannot be read, which training skips, a size for its boxes."""
    if picture.size is not None:
        return picture.size
    try:
        with Image.open(picture.file) as image:
            return upright_size(image)
    except DECODING_ERRORS:
        corners = [box.corners for box in picture.boxes if not box.as_shares]
        right, bottom = (max([1.0, *(corner[side] for corner in corners)]) for side in (2, 3))
        return (int(min(-(-right // 1), 1e6)), int(min(-(-bottom // 1), 1e6)))


def with_progress(items: Sequence[T], what: str) -> Iterable[T]:
    """Return the items, with a progress bar if there are many."""
    return tqdm(items, desc=what, unit="file", disable=len(items) < _SLOW)


def unreadable(source: str, entries: Sequence[str], remedy: str) -> list[Finding]:
    """Return the error for entries that cannot be read."""
    return FaultKind("unreadable-annotation", f"{source} cannot be read; {remedy}").findings(entries)


def of_no_part(part: str, what: str, others: Sequence[Path]) -> list[Finding]:
    """Return the warning about files or folders beside the parts whose names tell none, for the part "train" alone."""
    message = f"{what} have none of the words train, val and test in their names; training leaves them out"
    names = [path.name for path in others]
    return FaultKind("no-part", message, "warning").findings(names) if part == "train" else []


def read_numbers(texts: Sequence[str]) -> list[float]:
    """Return finite numbers.

    Raises:
        ValueError: a text is no finite number; names it.
    """
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text))
        except ValueError:
            raise ValueError(f"{text.strip()[:40]!r} is no number") from None
        if not math.isfinite(numbers[-1]):
            raise ValueError(f"{text.strip()[:40]!r} is no finite number")
    return numbers
