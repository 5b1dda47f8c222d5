"""Find out of which form a folder or a file is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparse_detr.data.formats import coco, table, voc, yolo
from sparse_detr.data.formats.files import ALL, shortened
from sparse_detr.data.formats.part import Part
from sparse_detr.errors import UserError

FORMS = (coco, yolo, voc, table)
_BY_SUFFIX = {".json": coco, ".yaml": yolo, ".yml": yolo, ".csv": table, ".tsv": table}


@dataclass(frozen=True)
class Found:
    """A data set on disk.

    Args:
        path: the folder or file.
        form: its name, such as "YOLO".
        parts: readers of "train", "val" and "test", and of "all" for what names tell no part of.
    """

    path: Path
    form: str
    parts: dict[str, Callable[[], Part]]

    def choose(self, *wanted: str) -> str | None:
        """Return the first of the wanted parts that there is; None if there is none."""
        return next((part for part in wanted if part in self.parts), None)


def find_data_set(path: str | Path) -> Found:
    """Recognise a folder or file of COCO, YOLO, Pascal VOC or CSV; nothing is read that is not needed for it.

    Raises:
        UserError: there is no such path; it has none of these forms, or several; says what was looked for.
    """
    path = Path(path).expanduser()
    if os.path.isfile(path):
        form = _BY_SUFFIX.get(path.suffix.lower())
        if form is None:
            raise UserError(f"{path} is of no known form; give a folder, or a file {', '.join(_BY_SUFFIX)}")
        return Found(path, form.NAME, form.find_file(path))
    if not os.path.isdir(path):
        raise UserError(f"there is no folder or file {path}; check the path")
    found = [Found(path, form.NAME, parts) for form in FORMS if (parts := form.find_in(path))]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{path} has several forms: {' and '.join(item.form for item in found)}; name one: a .json, .yaml or .csv "
            "file in it, or a folder that holds one form only"
        )
    inside = shortened(sorted(path.iterdir()), path) or "nothing"
    looked_for = "".join(f"\n  {form.NAME}: {form.LOOKED_FOR}" for form in FORMS)
    raise UserError(f"{path} is of no known form; it holds {inside}; looked for{looked_for}")


def training_part(found: Found) -> str:
    """Return the name of the part to train on.

    Raises:
        UserError: there are parts, and none is for training.
    """
    return _part_for(found, "train", "training", "train")


def validation_part(found: Found) -> str:
    """Return the name of the part to evaluate on, of a path that was named for it.

    Raises:
        UserError: there are parts, and none is for validation.
    """
    return _part_for(found, "val", "validation", "evaluate")


def _part_for(found: Found, wanted: str, use: str, verb: str) -> str:
    part = found.choose(wanted, ALL)
    if part is None:
        raise UserError(
            f"{found.path} has no part for {use}, only {', '.join(found.parts)}; to {verb} on it, name its file or "
            f"folder itself, or call it {wanted}"
        )
    return part
