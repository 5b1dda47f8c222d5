"""The COCO file of a data set, and a note beside detections that tells which true boxes they belong to.

Ids of images often start at 1 in every data set, so nothing in the detections themselves tells.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from sparse_detr.budget_table import file_digest
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

NOTE = "coco_instances_truth.json"


@dataclass(frozen=True)
class TruthFile:
    """The true boxes of a data set.

    Args:
        name: of the data set.
        path: its COCO file.
        images: folder that its file names start from; "" for the current one.
    """

    name: str
    path: str
    images: str


def truth_file(name: str, *, remedy: str) -> TruthFile:
    """Return the COCO file of a data set in Detectron2's catalogs.

    Args:
        name: of the data set, which a config names as its evaluation data.
        remedy: what to do if there is none, for the error.

    Raises:
        UserError: the data set is not registered, or no COCO file.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name not in DatasetCatalog:
        raise UserError(f"the config's evaluation data {name} are not registered; {remedy}")
    metadata = MetadataCatalog.get(name)
    path = metadata.get("json_file")
    if not path or metadata.get("evaluator_type", "coco") != "coco":
        raise UserError(f"the config's evaluation data {name} are no COCO file; {remedy}")
    return TruthFile(name, path, metadata.get("image_root") or "")


def note_truth(folder: str | os.PathLike[str], name: str, path: str) -> None:
    """Write beside the detections in a folder that they belong to the true boxes of a data set.

    Args:
        folder: of the detections.
        name: of the data set.
        path: its COCO file.
    """
    note = {"data": name, "truth": path, "sha256": file_digest(path)}
    write_text_atomically(Path(folder, NOTE), json.dumps(note, indent=1) + "\n")


def check_truth(folder: str | os.PathLike[str], truth: TruthFile, *, remedy: str) -> None:
    """Refuse true boxes that the detections in a folder do not belong to.

    Detections without a note, of an earlier version or of another evaluator, are not checked.

    Raises:
        UserError: names the true boxes that they belong to, or the note cannot be read.
    """
    note = Path(folder, NOTE)
    if not (note.is_file() and os.path.isfile(truth.path)):
        return
    try:
        noted = json.loads(note.read_text(encoding="utf-8"))
        data, path, digest = (noted[key] for key in ("data", "truth", "sha256"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{note} cannot be read ({error!r}); evaluate again") from error
    if digest != file_digest(truth.path):
        raise UserError(
            f"the detections in {folder} belong to the data {data} with the true boxes {path}, but the config names "
            f"{truth.name}, and {truth.path} has other content; {remedy}"
        )
