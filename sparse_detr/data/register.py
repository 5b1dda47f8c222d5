"""Register COCO files as data sets of Detectron2: those that a config names, and a user's own."""

import atexit
import json
import logging
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from sparse_detr.data.annotations import (
    CocoFile,
    check_annotations,
    check_box_counts,
    check_classes_have_boxes,
    class_differences,
    missing_files,
    num_images_of,
    read_coco_file,
)
from sparse_detr.data.findings import NUM_EXAMPLES, refuse_errors
from sparse_detr.data.images import too_many_bad
from sparse_detr.data.records import ground_truth, is_fit_for_evaluation, training_records
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

logger = logging.getLogger(__name__)


def register_coco_files(
    *,
    name: str,
    annotations: str | Path,
    images: str | Path,
    class_names: Sequence[str],
    remedy: str = "check the path",
) -> None:
    """Register a COCO data set that is read at its first use; a config calls this in `dataloader.register`.

    A later call replaces an earlier one. If other code has registered the name, that data set stays, with a warning.

    Args:
        name: in Detectron2's catalogs.
        annotations: COCO annotation file; it need not exist yet.
        images: the folder that its file names start from.
        class_names: in the order of the category ids.
        remedy: what to do if the annotation file is missing, for the error.
    """
    if name in DatasetCatalog:
        if not isinstance(DatasetCatalog[name], _CocoReader):
            logger.warning("%s is registered by other code and stays; give the config's data set another name", name)
            return
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, _CocoReader(name, Path(annotations), str(images), remedy))
    MetadataCatalog.get(name).set(
        json_file=str(annotations), image_root=str(images), evaluator_type="coco", thing_classes=list(class_names)
    )


class _CocoReader(NamedTuple):
    """The function that Detectron2 calls to read a data set of `register_coco_files`."""

    name: str
    annotations: Path
    images: str
    remedy: str

    def __call__(self) -> list[dict[str, Any]]:
        if not self.annotations.is_file():
            raise UserError(f"the data set {self.name} needs {self.annotations}, which does not exist; {self.remedy}")
        return load_coco_json(str(self.annotations), self.images, self.name)


class OwnData(NamedTuple):
    """The names of own data in Detectron2's catalogs, and their classes."""

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
    boxes_from_masks: bool = False,
    num_queries: int | None = None,
    num_detections: int | None = None,
) -> OwnData:
    """Check COCO files, log warnings about them and register them; a second call changes nothing.

    The classes are the categories of the training file in the order of their ids, which may have gaps.

    Args:
        train_json, val_json: COCO annotation files.
        train_images, val_images: the folders that their file names start from.
        max_bad_share: refuse data if more than this share of the image files is missing.
        boxes_from_masks: give an annotation without a box the box around its mask.
        num_queries, num_detections: of the model, to warn about images with more boxes; None for no warning.

    Raises:
        UserError: a file cannot be used, or the two files differ in their classes; says what to mend.
    """
    if (val_json is None) != (val_images is None):
        raise UserError("a validation set needs an annotation file and an image folder; give both or none")
    limits = {"num_queries": num_queries, "num_detections": num_detections}
    train = read_coco_file(train_json, boxes_from_masks=boxes_from_masks)
    _check_and_warn(train, train_images, max_bad_share, limits, for_validation=False)
    val_name = None
    if val_json is not None and val_images is not None:
        val = read_coco_file(val_json, boxes_from_masks=boxes_from_masks)
        _check_and_warn(val, val_images, max_bad_share, limits, for_validation=True)
        _refuse_other_classes(train, val)
        val_name = _register("own_val", val, val_images)
    train_name = _register("own_train", train, train_images)
    return OwnData(train_name, val_name, len(train.class_names), list(train.class_names.values()))


def _check_and_warn(
    coco: CocoFile, images: str | Path, max_bad_share: float, limits: dict[str, int | None], *, for_validation: bool
) -> None:
    """Log the warnings about a file, and raise all its errors in one message."""
    entries = check_annotations(coco)
    refuse_errors(coco.path, entries)
    missing = missing_files(coco, images)
    _check_files(coco, images, missing, max_bad_share)
    targets = check_classes_have_boxes(coco, set(missing), for_validation=for_validation)
    refuse_errors(coco.path, targets)
    for finding in [*entries, *targets, *check_box_counts(coco, set(missing), **limits)]:
        logger.warning("%s: %s", coco.path, finding)


def _check_files(coco: CocoFile, images: str | Path, missing: list[str], max_bad_share: float) -> None:
    if not missing:
        return
    examples = ", ".join(missing[:NUM_EXAMPLES])
    bad, total = num_images_of(coco, missing), len(coco.images)
    message = f"{bad} of the {total} images of {coco.path} are not in {images}: {examples}"
    if bad == total or too_many_bad(bad, total, max_bad_share):
        remedy = "name the folder that holds them"
        if any("\\" in name for name in missing):
            remedy = "write / for the \\ in file_name, or use --train, which reads it so"
        raise UserError(f"{message}; {remedy}")
    logger.warning("%s; they are skipped", message)


def _refuse_other_classes(train: CocoFile, val: CocoFile) -> None:
    differences = class_differences(train, val)
    if differences:
        raise UserError("both files must list the same categories, used or not:\n  " + "\n  ".join(differences))


def _register(prefix: str, coco: CocoFile, images: str | Path) -> str:
    """Register a file under a name made from its content, so that a changed file gets no old metadata or cache."""
    path, folder = coco.path.resolve(), str(Path(images).resolve())
    origin = f"{path}\n{folder}" + "\nboxes from masks" * bool(coco.boxes_from_masks)
    checksum = zlib.crc32(path.read_bytes(), zlib.crc32(origin.encode(errors="surrogateescape")))
    name = f"{prefix}_{re.sub(r'[^A-Za-z0-9.-]', '_', path.stem)}_{checksum:08x}"
    if name in DatasetCatalog.list():
        return name
    from_masks = bool(coco.boxes_from_masks)
    DatasetCatalog.register(name, lambda: load_usable_boxes(path, folder, boxes_from_masks=from_masks))
    MetadataCatalog.get(name).set(
        image_root=folder,
        evaluator_type="coco",
        thing_classes=list(coco.class_names.values()),
        thing_dataset_id_to_contiguous_id={number: index for index, number in enumerate(coco.class_names)},
        json_file=_evaluation_file(coco, name),
    )
    return name


def load_usable_boxes(path: str | Path, images: str, *, boxes_from_masks: bool = False) -> list[dict[str, Any]]:
    """Return Detectron2's records of a COCO file, without the boxes that have no area inside their image."""
    coco = read_coco_file(path, boxes_from_masks=boxes_from_masks)
    records = training_records(coco, images)
    dropped = int((~coco.box_faults.usable).sum())
    if dropped:
        logger.info("%s: dropped %d boxes without area inside their image", path, dropped)
    return records


def _evaluation_file(coco: CocoFile, name: str) -> str:
    """Return the file for pycocotools: the given one, or a temporary one with its boxes only."""
    truth = ground_truth(coco)
    if is_fit_for_evaluation(coco, truth):
        return str(coco.path.resolve())
    try:
        folder = tempfile.TemporaryDirectory(prefix="sparse_detr_")
    except OSError as error:  # no default folder can be written into
        raise UserError(f"{error.strerror or error}; set TMPDIR to a folder that you may write to") from None
    atexit.register(folder.cleanup)
    path = Path(folder.name) / f"{name}.json"
    write_text_atomically(path, json.dumps(truth))
    return str(path)
