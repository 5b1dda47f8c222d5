"""A user's own COCO files as Detectron2 data sets."""

import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from sparse_detr.data.annotations import NUM_EXAMPLES, CocoFile, check_annotations, missing_files, read_coco_file
from sparse_detr.data.boxes import annotated_boxes, find_box_faults
from sparse_detr.data.images import too_many_bad
from sparse_detr.errors import UserError

logger = logging.getLogger(__name__)


class OwnData(NamedTuple):
    """Names to look up in Detectron2's catalogs, and what a model needs to know of the data."""

    train_name: str
    val_name: str | None
    num_classes: int
    class_names: list[str]


def register_own_data(
    *,
    train_json: str | Path,
    train_images: str | Path,
    val_json: str | Path | None = None,
    val_images: str | Path | None = None,
    max_bad_share: float = 0.01,
) -> OwnData:
    """Check COCO files, log what is odd about them and register them; again is harmless.

    The classes are the categories of the training file in the order of their ids, which may have gaps.

    Args:
        train_json, val_json: COCO annotation files.
        train_images, val_images: the folders that their file names refer to.
        max_bad_share: refuse data of which more than this share of the image files is missing.

    Raises:
        UserError: a file cannot be used, or the two files differ in their classes; it says what to mend.
    """
    if (val_json is None) != (val_images is None):
        raise UserError("A validation set needs both, its annotation file and its image folder.")
    train = _read_sound_file(train_json, train_images, max_bad_share)
    train_name = _register("own_train", train, train_images)
    val_name = None
    if val_json is not None and val_images is not None:
        val = _read_sound_file(val_json, val_images, max_bad_share)
        _refuse_other_classes(train, val)
        val_name = _register("own_val", val, val_images)
    return OwnData(train_name, val_name, len(train.class_names), list(train.class_names.values()))


def _read_sound_file(path: str | Path, images: str | Path, max_bad_share: float) -> CocoFile:
    """Read a file, log its warnings, refuse its errors all at once."""
    coco = read_coco_file(path)
    findings = check_annotations(coco)
    for finding in findings:
        if not finding.is_error:
            logger.warning("%s: %s", path, finding)
    errors = [str(finding) for finding in findings if finding.is_error]
    if errors:
        raise UserError(f"{path} cannot be used:\n  " + "\n  ".join(errors))
    _check_files(coco, images, max_bad_share)
    return coco


def _check_files(coco: CocoFile, images: str | Path, max_bad_share: float) -> None:
    missing = missing_files(coco, images)
    if not missing:
        return
    examples = ", ".join(missing[:NUM_EXAMPLES])
    message = f"{len(missing)} of the {len(coco.images)} images of {coco.path} are not in {images}: {examples}"
    if len(missing) == len(coco.images) or too_many_bad(len(missing), len(coco.images), max_bad_share):
        raise UserError(f"{message}. Is it the right folder?")
    logger.warning("%s. They are left out.", message)


def _refuse_other_classes(train: CocoFile, val: CocoFile) -> None:
    differences = [
        f"category {number} is {_quoted(train.class_names, number)} in {train.path}, "
        f"{_quoted(val.class_names, number)} in {val.path}"
        for number in sorted(train.class_names.keys() | val.class_names.keys())
        if train.class_names.get(number) != val.class_names.get(number)
    ]
    if differences:
        raise UserError("Both files must list the same categories, used or not:\n  " + "\n  ".join(differences))


def _quoted(names: dict[int, str], number: int) -> str:
    return repr(names[number]) if number in names else "missing"


def _register(prefix: str, coco: CocoFile, images: str | Path) -> str:
    """Register under a name that depends on the content, so that a changed file never meets old metadata or caches."""
    path, images = str(coco.path.resolve()), str(Path(images).resolve())
    checksum = zlib.crc32(coco.path.read_bytes(), zlib.crc32(f"{path}\n{images}".encode()))
    name = f"{prefix}_{coco.path.stem}_{checksum:08x}"
    if name in DatasetCatalog.list():
        return name
    DatasetCatalog.register(name, lambda: load_usable_boxes(path, images, name))
    metadata = MetadataCatalog.get(name)
    metadata.set(
        image_root=images,
        evaluator_type="coco",
        thing_classes=list(coco.class_names.values()),
        thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(coco.class_names)},
    )
    if _is_fit_for_evaluation(coco):
        metadata.set(json_file=path)
    return name


def load_usable_boxes(path: str, images: str, name: str) -> list[dict[str, Any]]:
    """Detectron2's records of a COCO file, without the boxes that have no area inside their image."""
    records = load_coco_json(path, images, name)
    dropped = 0
    for record in records:
        boxes = annotated_boxes(record["annotations"])
        usable = find_box_faults(boxes, record["height"], record["width"]).usable
        dropped += int((~usable).sum())
        record["annotations"] = [item for item, keep in zip(record["annotations"], usable) if keep]
    if dropped:
        logger.info("%s: dropped %d boxes without area inside their image", path, dropped)
    return records


def _is_fit_for_evaluation(coco: CocoFile) -> bool:
    """Whether pycocotools can judge by this file; else Detectron2's evaluator writes its own from our records.

    pycocotools needs `area` and `iscrowd`, takes an annotation with id 0 for never found, and drops no faulty box.
    """
    return bool(coco.box_faults.usable.all()) and all(
        item["id"] != 0 and isinstance(item.get("area"), (int, float)) and item.get("iscrowd") in (0, 1)
        for item in coco.annotations
    )
