"""A report on a COCO data set: what training will drop, skip or refuse, and what the data are like."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from sparse_detr.data.annotations import CocoFile, Finding, Rule, check_annotations, missing_files, read_coco_file
from sparse_detr.data.images import BadImageError, read_recorded_image, too_many_bad

# COCO's limits between small, medium and large, as area in pixels.
_SIZE_LIMITS = (32**2, 96**2)


@dataclass(frozen=True)
class Report:
    """What `check_data` found.

    Attributes:
        facts: name -> number, of the data as a whole.
        boxes_per_class: class name -> number of usable boxes, crowds left out.
        findings: the faults, errors first.
    """

    facts: dict[str, int]
    boxes_per_class: dict[str, int]
    findings: list[Finding]

    @property
    def stops_training(self) -> bool:
        return any(finding.is_error for finding in self.findings)

    def to_json(self) -> str:
        return json.dumps({**asdict(self), "stops_training": self.stops_training}, indent=2)

    def __str__(self) -> str:
        tables = [
            tabulate(self.facts.items(), headers=["data set", "number"]),
            tabulate(self.boxes_per_class.items(), headers=["class", "boxes"], disable_numparse=[0]),
        ]
        lines = [f"{'error' if finding.is_error else 'warning'}: {finding}" for finding in self.findings]
        return "\n\n".join([*tables, "\n".join(lines or ["Nothing is wrong."])])


def check_data(
    json_file: str | Path,
    images: str | Path,
    *,
    num_queries: int = 300,
    decode_images: bool = True,
    max_bad_share: float = 0.01,
) -> Report:
    """Check a COCO data set.

    Args:
        json_file: the annotation file.
        images: the folder that its file names refer to.
        num_queries: of the model; an image with more boxes cannot have them all detected.
        decode_images: read every image fully; else only look whether the files exist.
        max_bad_share: the training stops when more than this share of the images cannot be used.

    Raises:
        UserError: there is no such file or folder, or the file is not a COCO file.
    """
    coco = read_coco_file(json_file)
    missing = missing_files(coco, images)
    findings = [*check_annotations(coco), *_check_box_counts(coco, num_queries)]
    findings += Rule("missing-image", "image files are missing; they are skipped", is_error=False).findings(missing)
    damaged = _damaged_images(coco, Path(images), set(missing)) if decode_images else []
    findings += _check_damaged(damaged)
    findings += _check_share(len(missing) + len(damaged), len(coco.sound_images), max_bad_share)
    findings.sort(key=lambda finding: not finding.is_error)
    return Report(_facts(coco), _boxes_per_class(coco), findings)


def _damaged_images(coco: CocoFile, folder: Path, missing: set[str]) -> list[BadImageError]:
    """Read all images, in threads since Pillow decodes outside Python's lock."""
    records = [
        {**image, "file_name": str(folder / image["file_name"])}
        for image in coco.sound_images.values()
        if image["file_name"] not in missing
    ]
    with ThreadPoolExecutor() as executor:
        results: Iterable[BadImageError | None] = executor.map(_image_fault, records)
        progress = tqdm(results, total=len(records), desc="Reading images", unit="image")
        return [fault for fault in progress if fault is not None]


def _image_fault(record: dict[str, Any]) -> BadImageError | None:
    try:
        read_recorded_image(record)
    except BadImageError as error:
        return error
    return None


def _check_damaged(damaged: list[BadImageError]) -> Iterator[Finding]:
    rules = {
        "corrupt": Rule("corrupt-image", "image files are corrupt or truncated; they are skipped", is_error=False),
        "another size": Rule("image-size", "image files have another size than recorded; they are skipped", False),
    }
    for kind, rule in rules.items():
        yield from rule.findings([str(error) for error in damaged if error.kind == kind])


def _check_share(bad: int, total: int, max_bad_share: float) -> list[Finding]:
    if not (bad == total or too_many_bad(bad, total, max_bad_share)):
        return []
    message = f"of {total} images cannot be used, more than the allowed share of {max_bad_share:.2%}: training stops"
    return [Finding("bad-share", True, bad, message)] if bad else []


def _check_box_counts(coco: CocoFile, num_queries: int) -> list[Finding]:
    rule = Rule(
        "too-many-boxes",
        f"images have more boxes than the model's {num_queries} queries; it cannot detect them all",
        is_error=False,
    )
    return rule.findings(
        [
            f"{coco.sound_images[number]['file_name']}: {count}"
            for number, count in _boxes_per_image(coco).items()
            if count > num_queries
        ]
    )


def _is_target(coco: CocoFile) -> np.ndarray:
    """(T,) mask of the sound annotations that training uses."""
    crowd = np.array([bool(item.get("iscrowd")) for item in coco.sound_annotations], dtype=bool)
    return coco.box_faults.usable & ~crowd


def _boxes_per_image(coco: CocoFile) -> Counter[int]:
    return Counter(item["image_id"] for item, used in zip(coco.sound_annotations, _is_target(coco)) if used)


def _boxes_per_class(coco: CocoFile) -> dict[str, int]:
    counts = Counter(item["category_id"] for item, used in zip(coco.sound_annotations, _is_target(coco)) if used)
    return {f"{name} (id {number})": counts[number] for number, name in coco.class_names.items()}


def _facts(coco: CocoFile) -> dict[str, int]:
    is_target = _is_target(coco)
    per_image = _boxes_per_image(coco)
    areas = coco.boxes[is_target, 2] * coco.boxes[is_target, 3]
    small, medium, large = np.bincount(np.digitize(areas, _SIZE_LIMITS), minlength=3).tolist()
    ids = list(coco.class_names)
    return {
        "images": len(coco.images),
        "images without boxes": len(coco.sound_images) - len(per_image),
        "classes": len(ids),
        "class ids left out between the first and the last": ids[-1] - ids[0] + 1 - len(ids) if ids else 0,
        "annotations": len(coco.annotations),
        "crowds, which training leaves out": sum(bool(item.get("iscrowd")) for item in coco.sound_annotations),
        "boxes to train on": int(is_target.sum()),
        "most boxes of an image": max(per_image.values(), default=0),
        "small boxes (area below 32^2 pixels)": small,
        "medium boxes (below 96^2)": medium,
        "large boxes": large,
    }
