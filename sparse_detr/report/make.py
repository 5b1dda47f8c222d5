"""Make a report of files, or of a run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.errors import UserError
from sparse_detr.report.numbers import LIMIT, report_numbers
from sparse_detr.report.words import sentences

if TYPE_CHECKING:
    import numpy as np

    from sparse_detr.config.run import Run

RESULTS = os.path.join("inference", "coco_instances_results.json")


@dataclass(frozen=True)
class Source:
    """What a report is of.

    Args:
        truth: COCO file of the true boxes.
        results: COCO results file of the detections.
        images: folder that the file names of the images start from; None without image files.
        limit: how many detections of a class in an image count.
        value_range: black and white of gray images of more than 8 bits, see `data.images.read_image`.
    """

    truth: str
    results: str
    images: str | None = None
    limit: int = LIMIT
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class Report:
    """A report that is written.

    Args:
        numbers: content of its `report.json`.
        files: names of its files.
        skipped: why images are not shown among those with most errors.
    """

    numbers: dict[str, Any]
    files: list[str]
    skipped: list[str]


def source_of_run(run: Run, folder: str | os.PathLike[str]) -> Source:
    """Return what the last evaluation of a run has left in its folder.

    Of several evaluation sets, the file of detections holds those of the last one.

    Raises:
        UserError: there are no detections, or the evaluation data are no COCO file.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from sparse_detr.config.kinds import kind_of
    from sparse_detr.config.limits import evaluation_limit

    remedy = "give --truth and --results"
    results = os.path.join(folder, RESULTS)
    if not run.evaluation_sets:
        raise UserError(f"the config of {folder} names no evaluation data; {remedy}")
    names = run.evaluation_sets[-1].names
    if len(names) != 1 or names[0] not in DatasetCatalog:
        raise UserError(f"the evaluation data {', '.join(names)} are not one registered data set; {remedy}")
    metadata = MetadataCatalog.get(names[0])
    truth = metadata.get("json_file")
    if not truth or metadata.get("evaluator_type", "coco") != "coco":
        raise UserError(f"the evaluation data {names[0]} are no COCO file; {remedy}")
    if not os.path.isfile(results):
        raise UserError(f"there is no {results}; evaluate first: train_net.py --eval-only, or {remedy}")
    value_range = kind_of(run.config).get("dataloader.train.mapper.value_range")
    return Source(
        truth=truth,
        results=results,
        images=metadata.get("image_root") or None,
        limit=evaluation_limit(names[0], run.config),
        value_range=None if value_range is None else tuple(value_range),
    )


def make_report(source: Source, folder: Path, *, worst: int = 9) -> Report:
    """Write the report of a source into a folder, see `write.write_report`.

    Images that cannot be read are left out, and named in the result.

    Raises:
        UserError: the files cannot be read or written, or do not belong together.
    """
    from sparse_detr.data.annotations import read_coco_file
    from sparse_detr.data.records import ground_truth
    from sparse_detr.report.read import read_results
    from sparse_detr.report.write import write_report

    truth = ground_truth(read_coco_file(source.truth))
    if not any(not item["iscrowd"] for item in truth["annotations"]):
        raise UserError(f"{source.truth} has no true boxes that can be used; `sparse-detr check-data` says why")
    numbers = report_numbers(truth, read_results(source.results, truth), limit=source.limit, worst=worst)
    numbers["sentences"] = sentences(numbers)
    names = [image["file_name"] for image in numbers["worst"]] if source.images else []
    pictures, skipped = _read(names, source)
    about = f"true boxes: {source.truth}; detections: {source.results}"
    files = write_report(folder, numbers, title="Report on detections", about=about, pictures=pictures)
    return Report(numbers, files, skipped)


def _read(names: Iterable[str], source: Source) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the images that can be read, (H, W, 3) uint8 RGB by file name, and why others cannot."""
    from sparse_detr.data.images import BadImageError, read_image

    pictures, skipped = {}, []
    for name in names:
        try:
            pictures[name] = read_image(str(Path(source.images or "", name)), "RGB", source.value_range)
        except BadImageError as error:
            skipped.append(str(error))
    return pictures, skipped
