"""Read the training and the validation part of own data, with the same classes, and write them as COCO files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sparse_detr.data.findings import Finding
from sparse_detr.data.formats.find import Found, find_data_set, training_part, validation_part
from sparse_detr.data.formats.part import Part
from sparse_detr.data.formats.split import make_split, saved_split
from sparse_detr.files import make_folder, write_text_atomically

SHARE = 0.2
SPLIT_FILE = "split.json"


@dataclass(frozen=True)
class OwnParts:
    """The parts of own data.

    Args:
        train: to train on.
        val: to evaluate on; None without.
        decisions: what was found and decided, as sentences for the log.
    """

    train: Part
    val: Part | None
    decisions: list[str]

    @property
    def findings(self) -> list[Finding]:
        """What the readers found, of both parts."""
        return [*self.train.findings, *(self.val.findings if self.val else [])]


def read_own_parts(
    train: str | Path,
    val: str | Path | None = None,
    *,
    share: float = SHARE,
    seed: int = 0,
    folder: Path | None = None,
) -> OwnParts:
    """Read the training data of a folder or file, and the validation data.

    Validation data are those of `val`; or else the part "val" of `train`; or else a share of the training images, by
    image, which is the same in every run.

    Args:
        train, val: folders or files of COCO, YOLO, Pascal VOC or CSV.
        share: of the images for validation where neither `val` nor a part "val" is there; 0 for none.
        seed: of that choice.
        folder: where the choice is kept for later runs; None does not write it.

    Raises:
        UserError: the data cannot be read; says what was looked for or what to mend.
    """
    found = find_data_set(train)
    name = training_part(found)
    part = found.parts[name]()
    decisions = [_sentence(found, name, part, "training")]
    other: Part | None = None
    if val is not None:
        val_found = find_data_set(val)
        val_name = validation_part(val_found)
        other = val_found.parts[val_name]()
        decisions.append(_sentence(val_found, val_name, other, "validation"))
    elif "val" in found.parts:
        other = found.parts["val"]()
        decisions.append(_sentence(found, "val", other, "validation"))
    elif share > 0:
        return _divide(part, share, seed, folder, decisions)
    part, other, decision = with_same_classes(part, other)
    return OwnParts(part, other, [*decisions, *decision])


def _sentence(found: Found, name: str, part: Part, use: str) -> str:
    named = "" if name == "all" else f", part {name!r}"
    return f"{found.path} is read as {found.form}{named}: {len(part.content['images'])} images for {use}"


def _divide(part: Part, share: float, seed: int, folder: Path | None, decisions: list[str]) -> OwnParts:
    names = part.file_names
    path = None if folder is None else folder / SPLIT_FILE
    if path is None:
        split = make_split(names, share=share, seed=seed)
    else:
        make_folder(path.parent)
        split = saved_split(path, names, share=share, seed=seed)
    kept = "" if path is None else f"; the division is kept in {path}"
    decision = (
        f"no validation data are named: {len(split.val)} of the {len(names)} images are taken for it (by image, share "
        f"{share:g}, seed {seed}) and {len(split.train)} are left for training{kept}"
    )
    fixed, _, _ = with_same_classes(part, None)
    return OwnParts(fixed.only(split.train), _without_findings(fixed.only(split.val)), [*decisions, decision])


def _without_findings(part: Part) -> Part:
    return Part(part.source, part.content, part.images)


def with_same_classes(train: Part, val: Part | None) -> tuple[Part, Part | None, list[str]]:
    """Give both parts the same ids of classes, by name, if their names allow it; return what was decided.

    Where the training data do not say the order of the classes, it is alphabetical, over both parts. Two sources that
    both say it and differ stay as they are: the checks of the data name the difference.

    Raises:
        UserError: a part has boxes of a class that the other one, which names the classes, lacks.
    """
    if val is None:
        return train, None, []
    if train.fixed_classes and val.fixed_classes:
        if _ids(train) == _ids(val) or sorted(train.class_names) != sorted(val.class_names):
            return train, val, []
        names = train.class_names
        decision = [f"the classes of {val.source} are numbered as in {train.source}, by name"]
        return train.with_classes(names), val.with_classes(names), decision
    if train.fixed_classes or val.fixed_classes:
        names = (train if train.fixed_classes else val).class_names
    else:
        names = sorted({*train.class_names, *val.class_names})
    return train.with_classes(names), val.with_classes(names), []


def _ids(part: Part) -> list[tuple[object, object]]:
    return sorted((item.get("id"), item.get("name")) for item in part.content["categories"] if isinstance(item, dict))


def write_parts(parts: Iterable[tuple[str, Part]], folder: Path) -> list[Path]:
    """Return a COCO file for each part: the user's own, or one that is written into `folder`.

    The name of a written file has a checksum of its content, so that no other run's file is replaced.

    Args:
        parts: the beginning of the file name, and the part.
    """
    paths = []
    for name, part in parts:
        if part.json_file is not None:
            paths.append(part.json_file)
            continue
        text = coco_text(part)
        path = make_folder(folder) / f"{name}_{zlib.crc32(text.encode(errors='surrogatepass')):08x}.json"
        if not path.is_file():
            write_text_atomically(path, text)
        paths.append(path)
    return paths


def coco_text(part: Part) -> str:
    """Return a part as the text of a COCO file."""
    info = {"description": f"read from {part.source} by sparse_detr", "images": str(part.images)}
    return json.dumps({"info": info, **part.content}) + "\n"
