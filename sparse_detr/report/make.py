"""Make a report of files, or of a run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparse_detr.errors import UserError
from sparse_detr.report import LIMIT, NUMBERS
from sparse_detr.report.numbers import report_numbers
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
        of_run: whether a model of this program made the detections, so that its settings can be a remedy.
        data: name of the data set of a run; None for files.
        other_data: names of the run's other evaluation data.
    """

    truth: str
    results: str
    images: str | None = None
    limit: int = LIMIT
    value_range: tuple[float, float] | None = None
    of_run: bool = False
    data: str | None = None
    other_data: tuple[str, ...] = ()


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
        UserError: there are no detections, they belong to other data than the config names, or the evaluation data are
            no COCO file.
    """
    from sparse_detr.config.kinds import kind_of
    from sparse_detr.config.limits import evaluation_limit
    from sparse_detr.evaluation.truth import check_truth, truth_file

    remedy = "give --truth and --results"
    results = os.path.join(folder, RESULTS)
    if not run.evaluation_sets:
        raise UserError(f"the config of {folder} names no evaluation data; {remedy}")
    *others, names = (evaluation_set.names for evaluation_set in run.evaluation_sets)
    if len(names) != 1:
        raise UserError(f"the evaluation data {', '.join(names)} are not one data set; {remedy}")
    truth = truth_file(names[0], remedy=remedy)
    if not os.path.isfile(results):
        raise UserError(f"there is no {results}; evaluate first: train_net.py --eval-only, or {remedy}")
    check_truth(os.path.dirname(results), truth, remedy=f"evaluate on these, or {remedy}")
    value_range = kind_of(run.config).get("dataloader.train.mapper.value_range")
    return Source(
        truth=truth.path,
        results=results,
        images=truth.images or None,
        limit=evaluation_limit(truth.name, run.config),
        value_range=None if value_range is None else tuple(value_range),
        of_run=True,
        data=truth.name,
        other_data=tuple(name for other in others for name in other),
    )


def make_report(source: Source, folder: Path, *, worst: int = 9) -> Report:
    """Write the report of a source into a folder, see `write.write_report`.

    Images that cannot be read are left out, and named in the result.

    Raises:
        UserError: the files cannot be read or written, or do not belong together.
    """
    from sparse_detr.data.annotations import check_annotations, read_coco_file
    from sparse_detr.data.findings import refuse_errors
    from sparse_detr.data.records import ground_truth
    from sparse_detr.report.read import read_results
    from sparse_detr.report.write import write_report

    coco = read_coco_file(source.truth)
    refuse_errors(coco.path, check_annotations(coco))
    truth = ground_truth(coco)
    if not any(not item["iscrowd"] for item in truth["annotations"]):
        raise UserError(f"{source.truth} has no true boxes that can be used; `sparse-detr check-data` says why")
    numbers = report_numbers(truth, read_results(source.results, truth), limit=source.limit, worst=worst)
    numbers["left_out"] = len(coco.annotations) - len(truth["annotations"])
    numbers["of_run"] = source.of_run
    numbers |= {"data": source.data, "other_data": list(source.other_data)}
    numbers["replaces"] = _replaced_data(folder, source.data)
    numbers["sentences"] = sentences(numbers)
    pictures, skipped = _read(numbers["worst"] if source.images else [], source)
    about = f"data: {source.data}; " if source.data else ""
    about += f"true boxes: {_text(source.truth)}; detections: {_text(source.results)}"
    files = write_report(folder, numbers, title="Report on detections", about=about, pictures=pictures)
    return Report(numbers, files, skipped)


def _replaced_data(folder: Path, data: str | None) -> str | None:
    """Return the name of the data of the report that a folder holds; None if they are the same, or unknown."""
    try:
        old = json.loads((folder / NUMBERS).read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, LookupError, TypeError):  # no report, or one of an earlier version
        return None
    return old if old and data and old != data else None


def _text(path: str | os.PathLike[str]) -> str:
    """Return a path as text that UTF-8 can write; one below the folder of work starts there, as the user wrote it."""
    path = Path(path)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return os.fsencode(path).decode("utf-8", "replace")


def _read(worst: Iterable[Mapping[str, Any]], source: Source) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the images that can be shown, (H, W, 3) uint8 RGB by file name and reduced, and why others cannot."""
    from sparse_detr.data.images import BadImageError, read_image
    from sparse_detr.visualization.outlines import at_most

    pictures, skipped = {}, []
    for entry in worst:
        name, told = entry["file_name"], (entry["height"], entry["width"])
        path = str(Path(source.images or "", name))
        try:
            picture = read_image(path, "RGB", source.value_range)
        except BadImageError as error:
            skipped.append(str(error))
            continue
        if picture.shape[:2] != told:
            skipped.append(
                f"{path}: it has {picture.shape[1]} x {picture.shape[0]} pixels, but {source.truth} says "
                f"{told[1]} x {told[0]}; mend the size there"
            )
            continue
        pictures[name] = at_most(picture)
    return pictures, skipped
