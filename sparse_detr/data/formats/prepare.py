"""Read the training and the validation part of own data, with the same classes, and write them as COCO files."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sparse_detr.data.findings import FaultKind, Finding
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
    train: str | Path | Part,
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
        train, val: folders or files of COCO, YOLO, Pascal VOC or CSV; training data may be read already.
        share: of the images for validation where neither `val` nor a part "val" is there; 0 for none.
        seed: of that choice.
        folder: where the choice is kept for later runs; None does not write it.

    Raises:
        UserError: the data cannot be read; says what was looked for or what to mend.
    """
    part, inside, decisions = (train, None, []) if isinstance(train, Part) else _read_training(train)
    other: Part | None = None
    if val is not None:
        val_found = find_data_set(val)
        val_name = validation_part(val_found)
        other = val_found.parts[val_name]()
        decisions.append(_sentence(val_found, val_name, other, "validation"))
    elif inside is not None:
        other = inside.parts["val"]()
        decisions.append(_sentence(inside, "val", other, "validation"))
    elif share > 0:
        return _divide(part, share, seed, folder, decisions)
    if other is not None:
        other = replace(other, findings=[*other.findings, *_shared_images(part, other)])
    same, more = with_same_classes([part] if other is None else [part, other])
    return OwnParts(same[0], same[1] if other is not None else None, [*decisions, *more])


def _read_training(path: str | Path) -> tuple[Part, Found | None, list[str]]:
    """Return the training part, the data set if it has a part for validation too, and a sentence."""
    found = find_data_set(path)
    name = training_part(found)
    part = found.parts[name]()
    return part, found if "val" in found.parts else None, [_sentence(found, name, part, "training")]


def _sentence(found: Found, name: str, part: Part, use: str) -> str:
    named = "" if name == "all" else f", part {name!r}"
    return f"{found.path} is read as {found.form}{named}: {len(part.content['images'])} images for {use}"


def _shared_images(train: Part, val: Part) -> list[Finding]:
    """Find the image files that are in both parts, as where lists `trainval` and `val` are given."""
    known = set(_files(train))
    message = "images for validation are also for training, so the scores will be too high; leave them out of one part"
    shared = [os.path.basename(file) for file in _files(val) if file in known]
    return FaultKind("shared-image", message, "warning").findings(shared)


def _files(part: Part) -> list[str]:
    folder = os.path.realpath(part.images)
    return [os.path.normpath(os.path.join(folder, name)) for name in part.file_names]


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
        f"no validation data are found: {len(split.val)} of the {len(names)} images are taken for it (by image, share "
        f"{share:g}, seed {seed}) and {len(split.train)} are left for training{kept}"
    )
    return OwnParts(part.only(split.train), replace(part.only(split.val), findings=[]), [*decisions, decision])


def with_same_classes(parts: Sequence[Part]) -> tuple[list[Part], list[str]]:
    """Give all parts the same ids of classes, by name, if their names allow it; return them and what was decided.

    Where no part says the order of the classes, it is alphabetical, over all parts. Parts that all say it and have
    different names stay as they are: the checks of the data name the difference.

    Raises:
        UserError: a part has boxes of a class that the one which names the classes lacks.
    """
    fixed = [part for part in parts if part.fixed_classes]
    if len(fixed) < len(parts):
        names = fixed[0].class_names if fixed else sorted({name for part in parts for name in part.class_names})
        return [part.with_classes(names) for part in parts], []
    first, others = fixed[0], [part for part in fixed if _ids(part) != _ids(fixed[0])]
    if not others or any(sorted(part.class_names) != sorted(first.class_names) for part in others):
        return list(parts), []
    decisions = [f"the classes of {part.source} are numbered as in {first.source}, by name" for part in others]
    return [part.with_classes(first.class_names) for part in parts], decisions


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
    return json.dumps(part.to_coco()) + "\n"
