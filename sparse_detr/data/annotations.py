"""Find the faults of a COCO annotation file; training and `check-data` report them in the same words."""

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sparse_detr.data.boxes import BoxFaults, corners_of, find_box_faults, read_flag
from sparse_detr.data.findings import FaultKind, Finding, Severity, errors_first
from sparse_detr.data.masks import box_of_mask
from sparse_detr.errors import UserError

CONVERTER = "sparse_detr"  # the contributor in the `info` of a file that was made from data in another form
MAX_ID = 2**53  # many tools keep the numbers of a JSON file as float64

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class CocoFile:
    """The three lists of a COCO file, and the entries of each that training and evaluation use.

    `boxes_from_masks` counts the annotations without a box that got the box around their mask. With `made_ids` the
    numbers are this program's, as of data that were in another form: then messages name images by their files.
    """

    path: Path
    images: list[Any]
    annotations: list[Any]
    categories: list[Any]
    boxes_from_masks: int = 0
    made_ids: bool = False

    def name_of(self, annotation: dict[str, Any]) -> str:
        """Return the name of a sound annotation for messages."""
        image = self.sound_images.get(annotation["image_id"])
        if self.made_ids and image is not None:
            return f"annotation {annotation['id']} in {image['file_name']}"
        return f"annotation {annotation['id']} of image {annotation['image_id']}"

    @cached_property
    def sound_images(self) -> dict[int, dict[str, Any]]:
        """Return the images with all fields, by id; of several with one id the last."""
        return {image["id"]: image for image in self.images if is_image(image)}

    @cached_property
    def class_names(self) -> dict[int, str]:
        """Return the class names by category id, ascending."""
        return {
            item["id"]: item["name"] for item in sorted(filter(is_category, self.categories), key=lambda x: x["id"])
        }

    @cached_property
    def sound_annotations(self) -> list[dict[str, Any]]:
        """Return the annotations with all fields, of a known image and category."""
        return [
            item
            for item in self.annotations
            if is_annotation(item) and item["image_id"] in self.sound_images and item["category_id"] in self.class_names
        ]

    @cached_property
    def boxes(self) -> np.ndarray:
        """Return the boxes of `sound_annotations`, (T, 4) x, y, width, height in pixels."""
        boxes = [[_to_float(number) for number in item["bbox"]] for item in self.sound_annotations]
        return np.array(boxes, dtype=np.float64).reshape(-1, 4)

    @cached_property
    def box_faults(self) -> BoxFaults:
        """Return the faults of the boxes of `sound_annotations`."""
        images = [self.sound_images[item["image_id"]] for item in self.sound_annotations]
        height, width = (np.array([image[side] for image in images], dtype=np.float64) for side in ("height", "width"))
        return find_box_faults(corners_of(self.boxes), height, width)

    @cached_property
    def crowd(self) -> np.ndarray:
        """Return a (T,) mask of the `sound_annotations` that are crowds."""
        return np.array([bool(read_flag(item.get("iscrowd"))) for item in self.sound_annotations], dtype=bool)

    def is_target(self, unusable: Collection[str] = ()) -> np.ndarray:
        """Return a (T,) mask of the `sound_annotations` that training uses.

        Args:
            unusable: file names of images that are missing or damaged.
        """
        names = (self.sound_images[item["image_id"]]["file_name"] for item in self.sound_annotations)
        unusable = frozenset(unusable)
        return self.box_faults.usable & ~self.crowd & np.array([name not in unusable for name in names], dtype=bool)


def read_coco_file(path: str | Path, *, boxes_from_masks: bool = False) -> CocoFile:
    """Read a COCO annotation file in UTF-8, with or without a byte order mark, UTF-16 or UTF-32.

    Args:
        boxes_from_masks: give an annotation without a `bbox` the box around its `segmentation`.

    Raises:
        UserError: the file does not exist, is not complete JSON, or lacks one of COCO's three lists.
    """
    path = Path(path)
    return coco_file_of(path, _read_json(path), boxes_from_masks=boxes_from_masks)


def coco_file_of(path: Path, content: Any, *, boxes_from_masks: bool = False) -> CocoFile:
    """Return the COCO file with this content; see `read_coco_file`.

    Args:
        path: where the content comes from, for messages.
    """
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a JSON {type(content).__name__}; give a COCO file, an object with 'images'")
    keys = ("images", "annotations", "categories")
    wrong = [key for key in keys if not isinstance(content.get(key), list)]
    if wrong:
        raise UserError(
            f"{path} has no list {' and no list '.join(map(repr, wrong))}; a COCO file has {', '.join(keys)} "
            "(an empty list is fine for annotations)"
        )
    info = content.get("info")
    coco = CocoFile(
        path, *(content[key] for key in keys), made_ids=isinstance(info, dict) and info.get("contributor") == CONVERTER
    )
    return _with_boxes_of_masks(coco) if boxes_from_masks else coco


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"there is no annotation file {path}; check the path") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; name a COCO file that you may read") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not complete JSON in UTF-8: its byte {error.start} is 0x{error.object[error.start]:02x}, "
            "so it is in another encoding or no text; save it as UTF-8"
        ) from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not complete JSON: {error}; it may be truncated, write it again") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path} holds a number that cannot be read: {error}; write a shorter one") from None


def _with_boxes_of_masks(coco: CocoFile) -> CocoFile:
    annotations = [_with_box_of_mask(item, coco.sound_images) for item in coco.annotations]
    added = sum(new is not old for new, old in zip(annotations, coco.annotations))
    return replace(coco, annotations=annotations, boxes_from_masks=added)


def _with_box_of_mask(item: Any, images: Mapping[int, dict[str, Any]]) -> Any:
    """Return the item with the box around its mask; `item` itself if it has a box, or no usable mask."""
    if not needs_box(item) or not _is_id(item.get("image_id")) or item["image_id"] not in images:
        return item
    image = images[item["image_id"]]
    box = box_of_mask(item.get("segmentation"), image["height"], image["width"])
    return {**item, "bbox": box} if box else item


def needs_box(item: Any) -> bool:
    """Return whether an annotation has no box."""
    return isinstance(item, dict) and item.get("bbox") in (None, [])


def check_annotations(coco: CocoFile) -> list[Finding]:
    """Return all faults that can be found without the image files, errors first."""
    checks = (_check_categories, _check_images, _check_ids, _check_annotation_entries, _check_box_entries, _check_units)
    return errors_first(finding for check in checks for finding in check(coco))


def check_classes_have_boxes(
    coco: CocoFile, unusable: Collection[str] = (), *, for_validation: bool = False
) -> list[Finding]:
    """Check that the file, and each of its classes, has boxes to train on or to evaluate with.

    Args:
        unusable: file names of images that are missing or damaged.
        for_validation: the file is for evaluation only; then an error that would stop a training is a warning.
    """
    is_target = coco.is_target(unusable)
    if not is_target.any():
        use = "evaluate with, so the AP is not defined" if for_validation else "train on"
        return [_without_targets(coco, is_target, unusable, use, for_validation)]
    classes = [item["category_id"] for item in coco.sound_annotations]
    left = {number for number, used in zip(classes, is_target) if used}
    empty = [number for number in coco.class_names if number in set(classes) - left]
    use = "evaluate with; their AP is not defined" if for_validation else "train on; mend them or remove the class"
    severity: Severity = "warning" if for_validation else "error"
    return FaultKind("class-without-boxes", f"classes have no box left to {use}", severity).findings(
        [f"{coco.class_names[number]}: {_causes(coco, unusable, number)}" for number in empty]
    )


def _without_targets(
    coco: CocoFile, is_target: np.ndarray, unusable: Collection[str], use: str, for_validation: bool
) -> Finding:
    remedy = "; set iscrowd to 0 where it is a single object" if coco.crowd.any() else ""
    causes = _causes(coco, unusable) or "the list of annotations is empty"
    severity: Severity = "warning" if for_validation else "error"
    return Finding("no-boxes", severity, 1, f"annotation file leaves no box to {use}: {causes}{remedy}")


def _causes(coco: CocoFile, unusable: Collection[str], category_id: int | None = None) -> str:
    """Return why training leaves out annotations, of one class or of all: "3 crowds, 1 without area"."""
    chosen = np.array([category_id in (None, item["category_id"]) for item in coco.sound_annotations], dtype=bool)
    faults = coco.box_faults
    in_bad_image = ~coco.is_target(unusable) & coco.is_target()
    unknown = len(coco.annotations) - len(coco.sound_annotations) if category_id is None else 0
    counts = {
        "crowds (iscrowd 1)": int((chosen & coco.crowd & faults.usable).sum()),
        "without area or not finite": int((chosen & faults.degenerate).sum()),
        "outside their image": int((chosen & faults.outside).sum()),
        "in images that are missing or damaged": int((chosen & in_bad_image).sum()),
        "unusable entries or of unknown images": unknown,
    }
    return ", ".join(f"{count} {cause}" for cause, count in counts.items() if count)


def check_box_counts(
    coco: CocoFile, unusable: Collection[str] = (), *, num_queries: int | None, num_detections: int | None = None
) -> list[Finding]:
    """Find images with more boxes than the model has queries or returns detections; None means no limit."""
    per_image = boxes_per_image(coco, unusable)

    def above(limit: int | None) -> list[str]:
        names = coco.sound_images
        return [f"{names[key]['file_name']}: {n}" for key, n in per_image.items() if limit is not None and n > limit]

    queries = f"images have more boxes than the model's {num_queries} queries; it cannot detect them all"
    kept = f"images have more boxes than the {num_detections} detections that are kept of an image; raise that limit"
    return [
        *FaultKind("too-many-boxes", queries, severity="warning").findings(above(num_queries)),
        *FaultKind("more-boxes-than-detections", kept, severity="warning").findings(above(num_detections)),
    ]


def boxes_per_image(coco: CocoFile, unusable: Collection[str] = ()) -> Counter[int]:
    """Count the boxes to train on by image id; images without such a box are left out."""
    return Counter(item["image_id"] for item, used in zip(coco.sound_annotations, coco.is_target(unusable)) if used)


def boxes_per_class(coco: CocoFile, unusable: Collection[str] = ()) -> Counter[int]:
    """Count the boxes to train on by category id; classes without such a box are left out."""
    return Counter(item["category_id"] for item, used in zip(coco.sound_annotations, coco.is_target(unusable)) if used)


def targets_by_image(coco: CocoFile, unusable: Collection[str] = ()) -> dict[int, list[int]]:
    """Return the indices into `sound_annotations` of the boxes to train on, by image id."""
    groups: dict[int, list[int]] = {}
    for index in coco.is_target(unusable).nonzero()[0].tolist():
        groups.setdefault(coco.sound_annotations[index]["image_id"], []).append(index)
    return groups


def class_differences(train: CocoFile, val: CocoFile) -> list[str]:
    """Return a sentence for each category that the two files do not share."""
    return [
        f"category {number} is {_class_or_missing(train.class_names, number)} in {train.path}, "
        f"{_class_or_missing(val.class_names, number)} in {val.path}"
        for number in sorted(train.class_names.keys() | val.class_names.keys())
        if train.class_names.get(number) != val.class_names.get(number)
    ]


def _class_or_missing(names: dict[int, str], number: int) -> str:
    return repr(names[number]) if number in names else "missing"


def missing_files(coco: CocoFile, folder: str | Path) -> list[str]:
    """Return the file names of the images that are not in the folder, in the order of the annotation file."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no image folder {folder}; check the path")
    names = dict.fromkeys(image["file_name"] for image in coco.sound_images.values())
    return [name for name in names if not os.path.isfile(folder / name)]  # raises nothing for impossible names


def num_images_of(coco: CocoFile, file_names: Collection[str]) -> int:
    """Count the images with one of the file names; several images may share a file."""
    names = set(file_names)
    return sum(image["file_name"] in names for image in coco.sound_images.values())


def is_category(item: Any) -> bool:
    return isinstance(item, dict) and _is_id(item.get("id")) and _is_text(item.get("name"))


def is_image(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and _is_id(item.get("id"))
        and _is_text(item.get("file_name"))
        and all(_is_id(item.get(side)) and item[side] > 0 for side in ("width", "height"))
    )


def is_annotation(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and all(_is_id(item.get(key)) for key in ("id", "image_id", "category_id"))
        and _is_box(item.get("bbox"))
    )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_integer(value) and abs(value) < MAX_ID


def _is_text(value: Any) -> bool:
    """Return whether it is text that UTF-8 can write; JSON may hold half of a surrogate pair, which UTF-8 cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(isinstance(x, float) or _is_integer(x) for x in value)


def _to_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf


def _has_huge_id(item: Any) -> bool:
    keys = ("id", "image_id", "category_id", "width", "height")
    return isinstance(item, dict) and any(_is_integer(item.get(key)) and abs(item[key]) >= MAX_ID for key in keys)


def _check_ids(coco: CocoFile) -> list[Finding]:
    entries = [*coco.images, *coco.annotations, *coco.categories]
    message = f"entries have a number of {MAX_ID} (2^53) or more, which many tools round; number them anew from 1"
    return FaultKind("huge-id", message).findings([_shorten(item) for item in entries if _has_huge_id(item)])


def _check_categories(coco: CocoFile) -> list[Finding]:
    sound = [item for item in coco.categories if is_category(item)]
    used = {item["category_id"] for item in coco.sound_annotations}
    return [
        *FaultKind("category-fields", "categories need an integer 'id' and a text 'name'").findings(
            [_shorten(item) for item in coco.categories if not is_category(item) and not _has_huge_id(item)]
        ),
        *FaultKind("no-categories", "list of categories is empty; name the classes there").findings(
            [] if coco.categories else [str(coco.path)]
        ),
        *FaultKind("duplicate-category-id", "category ids occur more than once; give each class its own").findings(
            _repeated(item["id"] for item in sound)
        ),
        *FaultKind("duplicate-category-name", "class names belong to several ids", severity="warning").findings(
            _repeated(item["name"] for item in sound)
        ),
        *FaultKind(
            "absent-category", "classes have no box; they are kept, and their AP is not defined", severity="warning"
        ).findings([name for number, name in coco.class_names.items() if number not in used]),
    ]


def _check_images(coco: CocoFile) -> list[Finding]:
    sound = [item for item in coco.images if is_image(item)]
    return [
        *FaultKind(
            "image-fields", "images need an integer 'id', a 'file_name' and a positive integer 'width' and 'height'"
        ).findings([_shorten(item) for item in coco.images if not is_image(item) and not _has_huge_id(item)]),
        *FaultKind("no-images", "list of images is empty; add the images").findings(
            [] if coco.images else [str(coco.path)]
        ),
        *FaultKind("duplicate-image-id", "image ids occur more than once; give each image its own").findings(
            _repeated(item["id"] for item in sound)
        ),
        *FaultKind("duplicate-file-name", "files belong to several image ids", severity="warning").findings(
            _repeated(item["file_name"] for item in sound)
        ),
    ]


def _check_annotation_entries(coco: CocoFile) -> list[Finding]:
    sound = [item for item in coco.annotations if is_annotation(item)]
    faulty = [item for item in coco.annotations if not is_annotation(item) and not _has_huge_id(item)]
    masked = [item for item in faulty if needs_box(item) and item.get("segmentation")]
    from_masks = "annotations have no 'bbox' and were given the box around their mask"
    return [
        *FaultKind(
            "annotation-fields",
            "annotations need integers 'id', 'image_id' and 'category_id' and a 'bbox' of four numbers"
            + ("; --boxes-from-masks takes the boxes from 'segmentation'" if masked else ""),
        ).findings([_shorten(item) for item in faulty]),
        *([Finding("boxes-from-masks", "warning", coco.boxes_from_masks, from_masks)] if coco.boxes_from_masks else []),
        *FaultKind(
            "no-annotations", "list of annotations is empty: every image is a negative", severity="warning"
        ).findings([] if coco.annotations else [str(coco.path)]),
        *FaultKind("duplicate-annotation-id", "annotation ids occur more than once; number the annotations").findings(
            _repeated(item["id"] for item in sound)
        ),
        *FaultKind(
            "unknown-category", "annotations have a category_id that is not in 'categories'; add it there"
        ).findings(
            [
                f"{coco.name_of(item)}: {item['category_id']}"
                for item in sound
                if item["category_id"] not in coco.class_names
            ]
        ),
        *FaultKind(
            "crowd-flag", "annotations have an 'iscrowd' that is neither 0 (one object) nor 1 (a crowd)"
        ).findings(
            [
                f"{coco.name_of(item)}: {_shorten(item['iscrowd'])}"
                for item in sound
                if read_flag(item.get("iscrowd")) is None
            ]
        ),
        *FaultKind("ignore-flag", "annotations have 'ignore', which COCO does not know: use 'iscrowd'").findings(
            [coco.name_of(item) for item in sound if read_flag(item.get("ignore")) is not False]
        ),
        *FaultKind(
            "unknown-image", "annotations have an image_id that is not in 'images'; they are dropped", "warning"
        ).findings(
            [f"{coco.name_of(item)}: {item['image_id']}" for item in sound if item["image_id"] not in coco.sound_images]
        ),
    ]


def _check_box_entries(coco: CocoFile) -> list[Finding]:
    faults = coco.box_faults
    entries = coco.sound_annotations
    same_box = _repeated((item["image_id"], item["category_id"], *item["bbox"]) for item in entries)
    return [
        *FaultKind(
            "degenerate-box", "boxes have no area or are not finite; they are dropped", severity="warning"
        ).findings([coco.name_of(entries[index]) for index in faults.degenerate.nonzero()[0]]),
        *FaultKind("outside-box", "boxes lie outside their image; they are dropped", severity="warning").findings(
            [coco.name_of(entries[index]) for index in faults.outside.nonzero()[0]]
        ),
        *FaultKind(
            "clipped-box", "boxes reach over the border of their image; they are clipped", severity="warning"
        ).findings([coco.name_of(entries[index]) for index in faults.clipped.nonzero()[0]]),
        *FaultKind("duplicate-box", "boxes occur more than once with the same class", severity="warning").findings(
            [f"image {image_id}" for image_id, *_ in same_box]
        ),
    ]


def _check_units(coco: CocoFile) -> list[Finding]:
    """Find boxes that are not in pixels, or not in the form x, y, width, height."""
    images = [coco.sound_images[item["image_id"]] for item in coco.sound_annotations]
    size = np.array([[image["width"], image["height"]] for image in images], dtype=np.float64).reshape(-1, 2)
    as_shares, as_corners = _look_like_shares(coco.boxes, size), _look_like_corners(coco.boxes, size)
    read = "but are read as x, y, width, height in pixels"
    return [
        *_units("boxes-as-shares", as_shares, f"from 0 to 1, {read}: multiply by the image's width and height"),
        *_units("boxes-as-corners", as_corners, f"x1, y1, x2, y2, {read}: write x1, y1, x2 - x1, y2 - y1"),
    ]


def _units(code: str, found: np.ndarray, what: str) -> list[Finding]:
    return [Finding(code, "warning", int(found.sum()), f"boxes look like {what}")] if found.any() else []


def _look_like_shares(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return a (T,) mask of boxes whose numbers are all from 0 to 1; empty if these are less than half of all boxes."""
    found = ((boxes >= 0) & (boxes <= 1)).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1) & (size > 2).all(axis=1)
    return found & (found.sum() * 2 >= len(boxes))


def _look_like_corners(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return a (T,) mask of boxes that end outside the image as x, y, width, height, and inside it as x1, y1, x2, y2.

    The mask is empty unless nearly all boxes are possible as corners: real widths are often smaller than the box's x.
    """
    possible = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= size + 1)).all(axis=1)
    found = (boxes[:, 2:] > 1.1 * size - boxes[:, :2]).any(axis=1) & possible
    return found & (possible.sum() >= 0.98 * len(boxes)) & (found.sum() >= 0.05 * len(boxes))


def _repeated(values: Iterable[T]) -> list[T]:
    return [value for value, count in Counter(values).items() if count > 1]


def _shorten(item: Any, length: int = 100) -> str:
    text = "".join(islice(json.JSONEncoder().iterencode(item), length))
    return text if len(text) <= length else f"{text[:length]}..."
