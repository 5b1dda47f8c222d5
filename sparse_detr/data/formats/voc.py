"""Read Pascal VOC's form: an XML file for each image.

`xmin`, `ymin`, `xmax`, `ymax` are the box's edges in pixels, as labelling tools write them. Files of the VOC challenge
itself, whose `<database>` says so, count pixels from 1: there 1 is subtracted from `xmin` and `ymin`, as in Detectron2.
An image without an XML file is left out: nobody has said that it has no objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from sparse_detr.data.findings import FaultKind, Finding
from sparse_detr.data.formats.files import (
    ALL,
    ImageFinder,
    by_part,
    files_with,
    images_below,
    near_folders,
    part_of,
    read_lines,
    subfolders,
)
from sparse_detr.data.formats.part import (
    LabelledBox,
    Part,
    Picture,
    make_part,
    of_no_part,
    read_numbers,
    unreadable,
    with_progress,
)
from sparse_detr.errors import UserError

NAME = "Pascal VOC"
LOOKED_FOR = ".xml files with <annotation>, in Annotations/ or beside the images"

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_CHALLENGE = re.compile(r"The VOC20\d\d Database|PASCAL VOC20\d\d")
_TRIED = 20


def find_in(folder: Path) -> dict[str, Callable[[], Part]]:
    """Return a reader for each part of a folder in Pascal VOC's form; {} if it has none."""
    xmls = _xmls_of(folder)
    if xmls:
        lists = _lists(folder)
        if not lists:
            return {ALL: partial(_read, folder, {folder: xmls})}
        return {part: partial(_read_list, folder, xmls, path) for part, path in lists.items()}
    xmls_of = {path: found for path in subfolders(folder) if (found := _xmls_of(path))}
    places = by_part(xmls_of)
    others = places.get(ALL, [])
    if len(places) == 1 and others:
        return {}
    return {
        part: partial(
            _read,
            paths[0] if len(paths) == 1 else folder,
            {path: xmls_of[path] for path in paths},
            findings=of_no_part(part, "folders", others),
        )
        for part, paths in places.items()
    }


def _xmls_of(folder: Path) -> list[Path]:
    """Return the XML files of a folder or of its Annotations/; [] if none of the first is an annotation."""
    for place in (folder / "Annotations", folder / "annotations", folder):
        files = files_with(place, ".xml")
        if any(_is_voc(path) for path in files[:_TRIED]):
            return files
    return []


def _is_voc(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(re.search(rb"<annotation[\s>]", file.read(4096).replace(b"\0", b"")))


def _lists(folder: Path) -> dict[str, Path]:
    """Return the lists of the parts in ImageSets/; "trainval" only if there is no "train"."""
    for place in (folder / "ImageSets" / "Main", folder / "ImageSets"):
        by_stem = {path.stem: path for path in files_with(place, ".txt")}
        found = {part: by_stem[part] for part in ("train", "val", "test") if part in by_stem}
        if "train" not in found and "trainval" in by_stem:
            found = {"train": by_stem["trainval"], **{part: found[part] for part in found if part == "test"}}
        if found:
            return found
    return {}


@dataclass
class _Annotations:
    """What was read so far, and the faults by file."""

    faulty: list[str] = field(default_factory=list)
    polygons: int = 0
    difficult: int = 0
    counted_from_one: int = 0

    def read(self, path: Path, finder: ImageFinder) -> Picture | None:
        """Read an XML file; None if it is broken."""
        try:
            root = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, ValueError, OSError, LookupError) as error:
            self.faulty.append(f"{path.name}: {error}")
            return None
        if root.tag != "annotation":
            self.faulty.append(f"{path.name}: its root is <{root.tag}>, not <annotation>")
            return None
        first = float(bool(_CHALLENGE.search(" ".join(text or "" for text in _texts(root, "source/*")))))
        self.counted_from_one += bool(first)
        boxes = [box for item in root.findall("object") if (box := self._box(item, path.name, first)) is not None]
        named = (root.findtext("filename") or "").strip()
        file = finder.find(path.stem) or (finder.find(named) if named else None)
        return Picture(file or finder.missing(named or path.stem), boxes, _size(root))

    def _box(self, item: ElementTree.Element, name: str, first: float) -> LabelledBox | None:
        label = (item.findtext("name") or "").strip()
        try:
            if not label:
                raise ValueError("an object has no <name>")
            x1, y1, x2, y2 = self._corners(item)
        except ValueError as error:
            self.faulty.append(f"{name}: {error}")
            return None
        self.difficult += (item.findtext("difficult") or "0").strip() == "1"
        return LabelledBox(label, (x1 - first, y1 - first, x2, y2))

    def _corners(self, item: ElementTree.Element) -> Sequence[float]:
        box = item.find("bndbox")
        texts = [box.findtext(side) if box is not None else None for side in _SIDES]
        if all(text is not None for text in texts):
            return read_numbers([text or "" for text in texts])
        polygon = item.find("polygon")
        xs, ys = (read_numbers(list(_coordinates(polygon, axis))) for axis in "xy")
        if len(xs) < 3 or len(xs) != len(ys):
            raise ValueError(f"an object {item.findtext('name')!r} has neither a <bndbox> of four sides nor a polygon")
        self.polygons += 1
        return min(xs), min(ys), max(xs), max(ys)

    def findings(self, without_xml: list[str]) -> list[Finding]:
        counts = [
            (
                "boxes-from-polygons",
                self.polygons,
                "objects have a polygon and no <bndbox>; the box around it is taken",
            ),
            ("difficult-objects", self.difficult, "objects are marked difficult; they are used like all others"),
            (
                "pixels-from-one",
                self.counted_from_one,
                "files of the VOC challenge, which counts pixels from 1, are read so",
            ),
        ]
        left_out = "images have no .xml file and are left out; an <annotation> without <object> marks an empty image"
        return [
            *unreadable("annotations", self.faulty, "correct or remove them"),
            *(Finding(code, "note", count, message) for code, count, message in counts if count),
            *FaultKind("image-without-annotation", left_out, "warning").findings(without_xml),
        ]


def _texts(root: ElementTree.Element, path: str) -> Iterator[str | None]:
    return (element.text for element in root.findall(path))


def _coordinates(polygon: ElementTree.Element | None, axis: str) -> Iterator[str]:
    """Return the texts of `<x1>`, `<x2>`, ... or of `<pt><x>` in the order of the file."""
    for element in polygon.iter() if polygon is not None else ():
        if re.fullmatch(rf"{axis}\d*", element.tag):
            yield element.text or ""


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """Return the recorded width and height; None if they are missing or 0, as some tools write."""
    try:
        width, height = read_numbers([root.findtext(f"size/{side}") or "" for side in ("width", "height")])
    except ValueError:
        return None
    return (int(width), int(height)) if min(width, height) >= 1 else None


def _read_list(folder: Path, xmls: Sequence[Path], listed: Path) -> Part:
    """Read the XML files whose names a list of ImageSets/ gives."""
    by_stem = {path.stem: path for path in xmls}
    names = {_name_in(line, by_stem) for line in read_lines(listed)}
    unknown = sorted(names - by_stem.keys())
    if unknown:
        raise UserError(f"{listed} names {', '.join(unknown[:5])}, which have no .xml file; correct the list")
    if not names:
        raise UserError(f"{listed} names no annotation; check the path")
    findings = []
    if listed.stem == "trainval" and (val := listed.with_name("val.txt")).is_file():
        message = f"list is not used, since {listed.name}, which is trained on, holds its images too; name a train.txt"
        findings = FaultKind("unused-list", message, "warning").findings([val.name])
    return _read(listed, {folder: [by_stem[name] for name in sorted(names)]}, complete=False, findings=findings)


def _name_in(line: str, known: Collection[str]) -> str:
    """Return the name in a line, which may have spaces; after it, lists of the VOC challenge say -1, 0 or 1."""
    return line if line in known else re.sub(r"\s+(-1|0|1)$", "", line)


def _read(
    source: Path, xmls: Mapping[Path, Sequence[Path]], *, complete: bool = True, findings: Sequence[Finding] = ()
) -> Part:
    """Read the XML files of folders.

    Args:
        xmls: the files by the folder that their images are looked for in.
        complete: whether the folders are of this part alone, so that an image without an XML file is left out of it.
        findings: to begin with.
    """
    read = _Annotations()
    pictures: list[Picture] = []
    others: list[str] = []
    for folder, files in xmls.items():
        finder = ImageFinder(near_folders(files[0], folder, part_of(folder.name)), folder)
        found = [read.read(path, finder) for path in with_progress(files, "reading labels")]
        pictures += [picture for picture in found if picture is not None]
        if complete:
            used = {picture.file.resolve() for picture in found if picture is not None}
            stems = {path.stem for path in files}
            others += [p.name for p in images_below(folder) if p.resolve() not in used and p.stem not in stems]
    names, of_classes = _class_names(list(xmls), {box.name for picture in pictures for box in picture.boxes})
    return make_part(source, pictures, names, [*findings, *read.findings(others), *of_classes])


def _class_names(folders: Sequence[Path], used: set[str]) -> tuple[list[str] | None, list[Finding]]:
    """Return the classes of a file with one name a line, if there is one with all `used` names; else None."""
    for path in (folder / name for folder in folders for name in ("labels.txt", "classes.txt")):
        if path.is_file():
            names = read_lines(path)
            missing = sorted(used - set(names))
            lacks = f"classes are not in {path}, which is therefore not used; the order is alphabetical"
            findings = FaultKind("incomplete-class-list", lacks, "warning").findings(missing)
            return (None if missing else names), findings
    return None, []
