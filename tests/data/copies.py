"""The same small data set in each form that can be read."""

import csv
import json
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

NAMES = ["apple", "cup", "zebra"]  # in alphabetical order, which is that of forms without an order


class Shape(NamedTuple):
    """A rectangle of a class: its corners in pixels."""

    name: str
    x1: int
    y1: int
    x2: int
    y2: int


class Drawing(NamedTuple):
    """An image of rectangles on noise."""

    stem: str
    width: int
    height: int
    shapes: list[Shape]


def drawings(count=6, *, start=0, size=(64, 48)):
    """Return drawings with one to three rectangles; the last one has none."""
    made = []
    for number in range(start, start + count):
        random = np.random.default_rng(number)
        width, height = size if number % 2 else size[::-1]
        shapes = []
        for index in range(0 if number == start + count - 1 else 1 + number % 3):
            x, y = (int(random.integers(0, side // 2)) for side in (width, height))
            w, h = (int(random.integers(side // 4, side // 2)) for side in (width, height))
            shapes.append(Shape(NAMES[(number + index) % 3], x, y, x + w, y + h))
        made.append(Drawing(f"image_{number:02}", width, height, shapes))
    return made


def draw(folder, made, suffix=".png"):
    """Write the image files."""
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in made:
        seed = int(drawing.stem.rpartition("_")[2])
        pixels = np.random.default_rng(seed).integers(0, 60, (drawing.height, drawing.width, 3), dtype=np.uint8)
        for shape in drawing.shapes:
            pixels[shape.y1 : shape.y2, shape.x1 : shape.x2] += np.uint8(60 * (1 + len(shape.name) % 3))
        Image.fromarray(pixels).save(folder / f"{drawing.stem}{suffix}")


def coco_content(made, names=NAMES):
    annotations = []
    for number, drawing in enumerate(made, start=1):
        for shape in drawing.shapes:
            box = [shape.x1, shape.y1, shape.x2 - shape.x1, shape.y2 - shape.y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": names.index(shape.name) + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    images = [
        {"id": number, "file_name": f"{d.stem}.png", "width": d.width, "height": d.height}
        for number, d in enumerate(made, start=1)
    ]
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root, parts):
    """Write annotations/instances_<part>.json and images/<part>/; a part None has neither word."""
    for part, made in parts.items():
        draw(root / "images" / (part or ""), made)
        (root / "annotations").mkdir(exist_ok=True)
        name = f"instances_{part}.json" if part else "instances.json"
        (root / "annotations" / name).write_text(json.dumps(coco_content(made)))
    return root


def yolo_lines(drawing, names=NAMES):
    for shape in drawing.shapes:
        x, y = (shape.x1 + shape.x2) / 2 / drawing.width, (shape.y1 + shape.y2) / 2 / drawing.height
        w, h = (shape.x2 - shape.x1) / drawing.width, (shape.y2 - shape.y1) / drawing.height
        yield f"{names.index(shape.name)} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n"


def write_yolo(root, parts):
    """Write data.yaml, images/<part>/ and labels/<part>/; an image without objects has no file of labels."""
    for part, made in parts.items():
        draw(root / "images" / (part or ""), made)
        labels = root / "labels" / (part or "")
        labels.mkdir(parents=True, exist_ok=True)
        for drawing in made:
            if drawing.shapes:
                (labels / f"{drawing.stem}.txt").write_text("".join(yolo_lines(drawing)))
    lines = [f"{part or 'train'}: images/{part or ''}" for part in parts]
    (root / "data.yaml").write_text("\n".join([*lines, f"nc: {len(NAMES)}", f"names: {NAMES}"]) + "\n")
    return root


def voc_text(drawing):
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = f"{drawing.stem}.png"
    size = ElementTree.SubElement(root, "size")
    for side in ("width", "height"):
        ElementTree.SubElement(size, side).text = str(getattr(drawing, side))
    for shape in drawing.shapes:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = shape.name
        box = ElementTree.SubElement(item, "bndbox")
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), shape[1:]):
            ElementTree.SubElement(box, side).text = str(value)
    return ElementTree.tostring(root, encoding="unicode")


def write_voc(root, parts):
    """Write Annotations/, JPEGImages/ and, for named parts, ImageSets/Main/."""
    for part, made in parts.items():
        draw(root / "JPEGImages", made)
        (root / "Annotations").mkdir(exist_ok=True)
        for drawing in made:
            (root / "Annotations" / f"{drawing.stem}.xml").write_text(voc_text(drawing))
        if part:
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{d.stem}\n" for d in made))
    return root


def csv_rows(made):
    for drawing in made:
        for shape in drawing.shapes:
            yield [f"{drawing.stem}.png", *shape[1:], shape.name]
        if not drawing.shapes:
            yield [f"{drawing.stem}.png", "", "", "", "", ""]


def write_csv(root, parts):
    """Write <part>.csv and images/."""
    for part, made in parts.items():
        draw(root / "images", made)
        with open(root / f"{part or 'boxes'}.csv", "w", newline="") as file:
            csv.writer(file).writerows([["file", "x1", "y1", "x2", "y2", "class"], *csv_rows(made)])
    return root


WRITERS = {"COCO": write_coco, "YOLO": write_yolo, "Pascal VOC": write_voc, "CSV": write_csv}


def write(form, root, parts) -> Path:
    """Write drawings in a form; `parts` are lists of drawings by name, or one list by None."""
    root.mkdir(parents=True, exist_ok=True)
    return WRITERS[form](root, parts)
