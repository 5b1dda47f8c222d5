"""Report on a COCO data set: what training will drop, skip or refuse, and statistics of the data."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from sparse_detr.data.annotations import (
    CocoFile,
    boxes_per_class,
    boxes_per_image,
    check_annotations,
    check_box_counts,
    check_classes_have_boxes,
    missing_files,
    num_images_of,
    read_coco_file,
)
from sparse_detr.data.duplicates import Fingerprint, fingerprint
from sparse_detr.data.findings import FaultKind, Finding, errors_first
from sparse_detr.data.images import (
    BadImageError,
    Depth,
    check_value_range,
    image_depth,
    read_recorded_image,
    read_values,
    too_many_bad,
)

# COCO's limits between small, medium and large, as area in pixels.
_SIZE_LIMITS = (32**2, 96**2)


@dataclass(frozen=True)
class Report:
    """The result of `check_data`.

    Attributes:
        facts: name -> number, of the whole data set.
        boxes_per_class: class name -> number of usable boxes without crowds.
        findings: the faults, errors first.
    """

    facts: dict[str, float]
    boxes_per_class: dict[str, int]
    findings: list[Finding]

    @property
    def stops_training(self) -> bool:
        return any(finding.is_error for finding in self.findings)

    @property
    def is_sound(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(finding.severity == "note" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        findings = [{**asdict(finding), "is_error": finding.is_error} for finding in self.findings]
        return {**asdict(self), "findings": findings, "stops_training": self.stops_training}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def __str__(self) -> str:
        tables = [
            tabulate(self.facts.items(), headers=["data set", "number"]),
            tabulate(self.boxes_per_class.items(), headers=["class", "boxes"], disable_numparse=True),
        ]
        lines = [f"{finding.severity}: {finding}" for finding in self.findings]
        return "\n\n".join([*tables, "\n".join([*(["nothing is wrong"] if self.is_sound else []), *lines])])


def check_data(
    json_file: str | Path,
    images: str | Path,
    *,
    num_queries: int | None = 300,
    num_detections: int | None = None,
    decode_images: bool = True,
    max_bad_share: float = 0.01,
    for_validation: bool = False,
    boxes_from_masks: bool = False,
    value_range: Sequence[float] | None = None,
) -> Report:
    """Check a COCO data set.

    Args:
        json_file: the annotation file.
        images: the folder that the file names in it start from.
        num_queries: queries of the model, which cannot detect more boxes in an image; None means no limit.
        num_detections: detections that the model returns of an image; None means no limit.
        decode_images: read every image fully; else only check that the files exist.
        max_bad_share: the training stops when more than this share of the images cannot be used.
        for_validation: the data are for evaluation only, so they may have no boxes.
        boxes_from_masks: give an annotation without a box the box around its mask, as training can.
        value_range: values of black and white of gray images of more than 8 bits, as in `read_image`.

    Raises:
        UserError: the file or folder does not exist, or the file is not a COCO file.
    """
    coco = read_coco_file(json_file, boxes_from_masks=boxes_from_masks)
    return check_coco(
        coco,
        Path(images),
        num_queries=num_queries,
        num_detections=num_detections,
        decode_images=decode_images,
        max_bad_share=max_bad_share,
        for_validation=for_validation,
        value_range=value_range,
    ).report


@dataclass(frozen=True)
class Checked:
    """A data set after its check.

    Args:
        coco: its content.
        images: the folder that its file names start from.
        report: what was found.
        unusable: file names of the images that are missing or damaged.
        fingerprints: of the images that were read, by file name.
    """

    coco: CocoFile
    images: Path
    report: Report
    unusable: frozenset[str]
    fingerprints: list[tuple[str, Fingerprint]]


def check_coco(
    coco: CocoFile,
    images: Path,
    *,
    num_queries: int | None,
    num_detections: int | None,
    decode_images: bool,
    max_bad_share: float,
    for_validation: bool,
    value_range: Sequence[float] | None,
) -> Checked:
    """Check a COCO data set; for the arguments see `check_data`."""
    value_range = check_value_range(value_range)
    missing = missing_files(coco, images)
    images_read = _read_all(coco, images, set(missing), value_range) if decode_images else []
    damaged = [image.fault for image in images_read if image.fault]
    unusable = {*missing, *(image.file_name for image in images_read if image.fault)}
    findings = [
        *check_annotations(coco),
        *_check_classes_have_boxes(coco, missing, unusable, for_validation),
        *check_box_counts(coco, unusable, num_queries=num_queries, num_detections=num_detections),
        *FaultKind("missing-image", "image files are missing; they are skipped", severity="warning").findings(missing),
        *_check_damaged(damaged),
        *_check_share(num_images_of(coco, unusable), len(coco.sound_images), max_bad_share),
        *_check_depths(images_read, value_range),
    ]
    facts = {**_facts(coco, unusable), **_depth_facts(images_read)}
    report = Report(facts, _boxes_per_class(coco, unusable), errors_first(findings))
    fingerprints = [(image.file_name, image.fingerprint) for image in images_read if image.fingerprint]
    return Checked(coco, images, report, frozenset(unusable), fingerprints)


@dataclass(frozen=True)
class _ImageRead:
    """The result of reading an image; `low` and `high` are the limits of its values if it has more than 8 bits."""

    file_name: str
    fault: BadImageError | None = None
    depth: Depth | None = None
    low: float = 0.0
    high: float = 0.0
    fingerprint: Fingerprint | None = None


def _read_all(coco: CocoFile, folder: Path, missing: set[str], value_range: Sequence[float] | None) -> list[_ImageRead]:
    """Read all images in threads: Pillow releases Python's lock while it decodes."""
    images = [image for image in coco.sound_images.values() if image["file_name"] not in missing]
    with ThreadPoolExecutor() as executor:
        results: Iterable[_ImageRead] = executor.map(lambda image: _read_one(image, folder, value_range), images)
        return list(tqdm(results, total=len(images), desc="reading images", unit="image"))


def _read_one(image: dict[str, Any], folder: Path, value_range: Sequence[float] | None) -> _ImageRead:
    name, path = image["file_name"], str(folder / image["file_name"])
    found = None
    try:
        found = fingerprint(read_recorded_image({**image, "file_name": path}, value_range=value_range))
        fault = None
    except BadImageError as error:
        if error.kind != "value range":
            return _ImageRead(name, error)
        fault = error
    depth = image_depth(path)
    if depth is None:
        return _ImageRead(name, fingerprint=found)
    values = read_values(path)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    return _ImageRead(name, fault, depth, low, high, found)


def _check_classes_have_boxes(
    coco: CocoFile, missing: Sequence[str], unusable: set[str], for_validation: bool
) -> Iterator[Finding]:
    """Check as training does, which finds damaged images only when it reads them."""
    findings = check_classes_have_boxes(coco, missing, for_validation=for_validation)
    yield from findings
    for finding in check_classes_have_boxes(coco, unusable, for_validation=for_validation):
        if finding.code not in {known.code for known in findings}:
            yield finding if finding.code == "no-boxes" else replace(finding, severity="warning")


def _check_depths(images: Iterable[_ImageRead], value_range: Sequence[float] | None) -> Iterator[Finding]:
    """Find images whose values use a small part of the range from black to white."""
    for name, found in _by_depth(images).items():
        low, high = min(image.low for image in found), max(image.high for image in found)
        used = value_range or found[0].depth.default_range  # type: ignore[union-attr]
        kept = [image for image in found if not image.fault]
        if value_range is None and used and kept and high < used[1] / 4 and _rounded_up(high) < used[1]:
            yield from FaultKind(
                "dark-images",
                f"{name} images have values from {low:g} to {high:g}, but {used[0]:g} to {used[1]:g} is read as black "
                f"to white; if that is too dark, set value_range, such as [0,{_rounded_up(high):g}]",
                severity="warning",
            ).findings([image.file_name for image in kept])


def _rounded_up(high: float) -> float:
    """Return the largest value of the smallest number of bits that can hold `high`."""
    return 2.0 ** math.ceil(math.log2(high + 1)) - 1 if high > 1 else 1.0


def _depth_facts(images: Iterable[_ImageRead]) -> dict[str, float]:
    facts: dict[str, float] = {}
    for name, found in _by_depth(images).items():
        facts |= {
            f"{name} gray images": len(found),
            f"lowest value of {name} images": min(image.low for image in found),
            f"highest value of {name} images": max(image.high for image in found),
        }
    return facts


def _by_depth(images: Iterable[_ImageRead]) -> dict[str, list[_ImageRead]]:
    groups: dict[str, list[_ImageRead]] = {}
    for image in images:
        if image.depth:
            groups.setdefault(image.depth.name, []).append(image)
    return groups


def _check_damaged(damaged: list[BadImageError]) -> Iterator[Finding]:
    kinds = {
        "corrupt": FaultKind(
            "corrupt-image", "image files are corrupt or truncated; they are skipped", severity="warning"
        ),
        "another size": FaultKind(
            "image-size", "image files have another size than recorded; they are skipped", "warning"
        ),
        "too large": FaultKind("large-image", "image files have too many pixels; they are skipped", "warning"),
        "value range": FaultKind("value-range", "images have values that no setting explains"),
    }
    for kind, fault in kinds.items():
        yield from fault.findings([str(error) for error in damaged if error.kind == kind])


def _check_share(bad: int, total: int, max_bad_share: float) -> list[Finding]:
    if not (bad == total or too_many_bad(bad, total, max_bad_share)):
        return []
    message = f"of {total} images cannot be used, more than the allowed share of {max_bad_share:.2%}; training stops"
    return [Finding("bad-share", "error", bad, message)] if bad else []


def _boxes_per_class(coco: CocoFile, unusable: set[str]) -> dict[str, int]:
    counts = boxes_per_class(coco, unusable)
    return {f"{name} (id {number})": counts[number] for number, name in coco.class_names.items()}


def _facts(coco: CocoFile, unusable: set[str]) -> dict[str, float]:
    is_target = coco.is_target(unusable)
    per_image = boxes_per_image(coco, unusable)
    areas = coco.boxes[is_target, 2] * coco.boxes[is_target, 3]
    small, medium, large = np.bincount(np.digitize(areas, _SIZE_LIMITS), minlength=3).tolist()
    ids = list(coco.class_names)
    return {
        "images": len(coco.images),
        "images without boxes": len(coco.sound_images) - len(per_image),
        "classes": len(ids),
        "class ids left out between the first and the last": ids[-1] - ids[0] + 1 - len(ids) if ids else 0,
        "annotations": len(coco.annotations),
        "crowds, which training leaves out": int(coco.crowd.sum()),
        "boxes to train on": int(is_target.sum()),
        "most boxes of an image": max(per_image.values(), default=0),
        "small boxes (area below 32^2 pixels)": small,
        "medium boxes (below 96^2)": medium,
        "large boxes": large,
    }
