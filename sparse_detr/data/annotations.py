"""What is wrong with a COCO annotation file, said the same way by training and by `check-data`."""

import json
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from sparse_detr.data.boxes import BoxFaults, find_box_faults
from sparse_detr.errors import UserError

NUM_EXAMPLES = 5

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Finding:
    """One kind of fault of a data set.

    Attributes:
        code: a name for programs.
        is_error: whether it stops the training; else it is worth a look.
        count: how many items have it.
        message: what it is and what happens or helps.
        examples: a few of the items.
    """

    code: str
    is_error: bool
    count: int
    message: str
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        where = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count} {self.message}{where}"


class Rule(NamedTuple):
    """A kind of fault before anything was found."""

    code: str
    message: str
    is_error: bool = True

    def findings(self, items: Sequence[object]) -> list[Finding]:
        """One finding with `items` as examples, none without items."""
        if not items:
            return []
        return [Finding(self.code, self.is_error, len(items), self.message, tuple(map(str, items[:NUM_EXAMPLES])))]


@dataclass(frozen=True)
class CocoFile:
    """The three lists of a COCO file, and the entries of each that the later checks can use."""

    path: Path
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]

    @cached_property
    def sound_images(self) -> dict[int, dict[str, Any]]:
        """By id; the last one where ids repeat."""
        return {image["id"]: image for image in self.images if is_image(image)}

    @cached_property
    def class_names(self) -> dict[int, str]:
        """By category id, ascending."""
        return {
            item["id"]: item["name"] for item in sorted(filter(is_category, self.categories), key=lambda x: x["id"])
        }

    @cached_property
    def sound_annotations(self) -> list[dict[str, Any]]:
        """Those with every field, of a known image and category."""
        return [
            item
            for item in self.annotations
            if is_annotation(item) and item["image_id"] in self.sound_images and item["category_id"] in self.class_names
        ]

    @cached_property
    def boxes(self) -> np.ndarray:
        """(T, 4) x, y, width, height in pixels of `sound_annotations`."""
        return np.array([item["bbox"] for item in self.sound_annotations], dtype=np.float64).reshape(-1, 4)

    @cached_property
    def box_faults(self) -> BoxFaults:
        """Of `sound_annotations`."""
        images = [self.sound_images[item["image_id"]] for item in self.sound_annotations]
        height, width = (np.array([image[side] for image in images], dtype=np.float64) for side in ("height", "width"))
        corners = np.concatenate([self.boxes[:, :2], self.boxes[:, :2] + self.boxes[:, 2:]], axis=1)
        return find_box_faults(corners, height, width)


def read_coco_file(path: str | Path) -> CocoFile:
    """Read a COCO annotation file.

    Raises:
        UserError: no such file, not complete JSON, or not COCO's three lists.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no annotation file {path}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not complete JSON: {error}. Is the file truncated? Write it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}, not COCO's object with 'images' and so on.")
    keys = ("images", "annotations", "categories")
    wrong = [key for key in keys if not isinstance(content.get(key), list)]
    if wrong:
        raise UserError(
            f"{path} has no list {' and no list '.join(map(repr, wrong))}; a COCO file has {', '.join(keys)} "
            "(an empty list is fine for annotations)."
        )
    return CocoFile(path, *(content[key] for key in keys))


def check_annotations(coco: CocoFile) -> list[Finding]:
    """Everything that can be said without looking at the image files, errors first."""
    checks = (_check_categories, _check_images, _check_annotation_entries, _check_boxes)
    return sorted((finding for check in checks for finding in check(coco)), key=lambda finding: not finding.is_error)


def missing_files(coco: CocoFile, folder: str | Path) -> list[str]:
    """File names of the images that are not in the folder, in the order of the file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no image folder {folder}.")
    names = dict.fromkeys(image["file_name"] for image in coco.sound_images.values())
    return [name for name in names if not os.path.isfile(folder / name)]  # no exception for impossible names


def is_category(item: Any) -> bool:
    return isinstance(item, dict) and _is_id(item.get("id")) and isinstance(item.get("name"), str)


def is_image(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and _is_id(item.get("id"))
        and isinstance(item.get("file_name"), str)
        and all(_is_id(item.get(side)) and item[side] > 0 for side in ("width", "height"))
    )


def is_annotation(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and all(_is_id(item.get(key)) for key in ("id", "image_id", "category_id"))
        and _is_box(item.get("bbox"))
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(x, float) or _is_id(x) for x in value)


def _check_categories(coco: CocoFile) -> list[Finding]:
    sound = [item for item in coco.categories if is_category(item)]
    used = {item["category_id"] for item in coco.sound_annotations}
    return [
        *Rule("category-fields", "categories need an integer 'id' and a text 'name'").findings(
            [_shorten(item) for item in coco.categories if not is_category(item)]
        ),
        *Rule("no-categories", "list of categories is empty: name the classes there").findings(
            [] if coco.categories else [str(coco.path)]
        ),
        *Rule("duplicate-category-id", "category ids occur more than once: give each class its own").findings(
            _repeated(item["id"] for item in sound)
        ),
        *Rule("duplicate-category-name", "class names belong to several ids", is_error=False).findings(
            _repeated(item["name"] for item in sound)
        ),
        *Rule(
            "absent-category", "classes have no box; they are kept, and their AP is not defined", is_error=False
        ).findings([name for number, name in coco.class_names.items() if number not in used]),
    ]


def _check_images(coco: CocoFile) -> list[Finding]:
    sound = [item for item in coco.images if is_image(item)]
    return [
        *Rule(
            "image-fields", "images need an integer 'id', a 'file_name' and a positive integer 'width' and 'height'"
        ).findings([_shorten(item) for item in coco.images if not is_image(item)]),
        *Rule("no-images", "list of images is empty: there is nothing to train or test on").findings(
            [] if coco.images else [str(coco.path)]
        ),
        *Rule("duplicate-image-id", "image ids occur more than once: give each image its own").findings(
            _repeated(item["id"] for item in sound)
        ),
        *Rule("duplicate-file-name", "files belong to several image ids", is_error=False).findings(
            _repeated(item["file_name"] for item in sound)
        ),
    ]


def _check_annotation_entries(coco: CocoFile) -> list[Finding]:
    sound = [item for item in coco.annotations if is_annotation(item)]
    return [
        *Rule(
            "annotation-fields",
            "annotations need integers 'id', 'image_id' and 'category_id' and a 'bbox' of four numbers",
        ).findings([_shorten(item) for item in coco.annotations if not is_annotation(item)]),
        *Rule("no-annotations", "list of annotations is empty: every image is a negative", is_error=False).findings(
            [] if coco.annotations else [str(coco.path)]
        ),
        *Rule("duplicate-annotation-id", "annotation ids occur more than once: number the annotations").findings(
            _repeated(item["id"] for item in sound)
        ),
        *Rule("unknown-category", "annotations have a category_id that is not in 'categories': add it there").findings(
            [f"{_name(item)}: {item['category_id']}" for item in sound if item["category_id"] not in coco.class_names]
        ),
        *Rule("ignore-flag", "annotations have 'ignore', which COCO does not know: use 'iscrowd'").findings(
            [_name(item) for item in sound if item.get("ignore")]
        ),
        *Rule(
            "unknown-image", "annotations have an image_id that is not in 'images'; they are dropped", False
        ).findings(
            [f"{_name(item)}: {item['image_id']}" for item in sound if item["image_id"] not in coco.sound_images]
        ),
        *Rule(
            "bad-polygon", "annotations have a polygon of less than three points; they are dropped", is_error=False
        ).findings([_name(item) for item in sound if _has_bad_polygon(item.get("segmentation"))]),
    ]


def _check_boxes(coco: CocoFile) -> list[Finding]:
    faults = coco.box_faults
    entries = coco.sound_annotations
    same_box = _repeated((item["image_id"], item["category_id"], *item["bbox"]) for item in entries)
    return [
        *Rule("degenerate-box", "boxes have no area or are not finite; they are dropped", is_error=False).findings(
            [_name(entries[index]) for index in faults.degenerate.nonzero()[0]]
        ),
        *Rule("outside-box", "boxes lie outside their image; they are dropped", is_error=False).findings(
            [_name(entries[index]) for index in faults.outside.nonzero()[0]]
        ),
        *Rule("clipped-box", "boxes reach over the border of their image; they are clipped", is_error=False).findings(
            [_name(entries[index]) for index in faults.clipped.nonzero()[0]]
        ),
        *Rule("duplicate-box", "boxes occur more than once with the same class", is_error=False).findings(
            [f"image {image_id}" for image_id, *_ in same_box]
        ),
    ]


def _has_bad_polygon(segmentation: Any) -> bool:
    """Whether Detectron2 finds no valid polygon in it, and therefore drops the annotation with its box."""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    return not any(isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0 for part in segmentation)


def _name(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['id']} of image {annotation['image_id']}"


def _repeated(values: Iterable[T]) -> list[T]:
    return [value for value, count in Counter(values).items() if count > 1]


def _shorten(item: Any, length: int = 100) -> str:
    text = "".join(islice(json.JSONEncoder().iterencode(item), length))
    return text if len(text) <= length else f"{text[:length]}..."
