"""What is written of the detections: COCO JSON, Parquet, YOLO's text files and pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_atomically, write_text_atomically
from sparse_detr.predict.job import Found, Job
from sparse_detr.visualization.detections import Detection, draw_detections

JPEG_QUALITY = 90


def write_coco(job: Job, path: Path, tracks: Mapping[int, Sequence[int]]) -> None:
    """Write all detections as one COCO file: `images`, `categories`, and `annotations` with a `score`.

    Ids start at 1; the category of class 0 is 1. `pycocotools` takes its `annotations` as results.

    Args:
        job: of the run.
        path: of the file.
        tracks: by number of a frame, the number of every detection, which becomes its `track_id`.
    """

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
        categories = [{"id": index + 1, "name": name} for index, name in enumerate(job.class_names)]
        text.write(f'{{"info": {{"description": "made by sparse-detr predict"}},\n"categories": {_json(categories)},\n')
        text.write('"images": [\n')
        text.writelines(_separated(_image(found) for found in job.read() if not found.problem))
        text.write('],\n"annotations": [\n')
        text.writelines(_separated(_annotations(job.read(), tracks)))
        text.write("]}\n")
        text.detach()

    write_atomically(path, write)


def _separated(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield rows as JSON, one a line, with commas between them."""
    end = ""
    for row in rows:
        yield end + _json(row)
        end = ",\n"
    yield "\n" if end else ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _image(found: Found) -> dict[str, Any]:
    return {"id": found.number + 1, "file_name": found.name, "width": found.width, "height": found.height}


def _annotations(pictures: Iterable[Found], tracks: Mapping[int, Sequence[int]]) -> Iterator[dict[str, Any]]:
    number = 0
    for found in pictures:
        rows = zip(found.boxes, found.scores, found.labels, strict=True)
        for row, ((x0, y0, x1, y1), score, label) in enumerate(rows):
            number += 1
            track = {"track_id": tracks[found.number][row]} if found.number in tracks else {}
            yield {
                "id": number,
                "image_id": found.number + 1,
                "category_id": label + 1,
                "bbox": [round(x0, 3), round(y0, 3), round(x1 - x0, 3), round(y1 - y0, 3)],
                "area": round((x1 - x0) * (y1 - y0), 3),
                "iscrowd": 0,
                "score": round(score, 6),
                **track,
            }


def check_parquet() -> None:
    """Raise a `UserError` if Parquet files cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format parquet needs pyarrow ({error}): pip install pyarrow") from error


def write_parquet(path: Path, pictures: Sequence[Found], class_names: Sequence[str]) -> None:
    """Write a row for every detection: image_id, file_name, label, class_name, score, x0, y0, x1, y1."""
    import pyarrow as pa
    from pyarrow import parquet

    names = dict(enumerate(class_names))
    rows = [
        (found.number + 1, found.name, label, names.get(label, str(label)), score, *box)
        for found in pictures
        for box, score, label in zip(found.boxes, found.scores, found.labels, strict=True)
    ]
    fields = [("image_id", pa.int64()), ("file_name", pa.string()), ("label", pa.int32()), ("class_name", pa.string())]
    fields += [(name, pa.float32()) for name in ("score", "x0", "y0", "x1", "y1")]
    columns = list(zip(*rows, strict=True)) or [[] for _ in fields]
    arrays = [pa.array(column, kind) for column, (_, kind) in zip(columns, fields, strict=True)]
    table = pa.table(arrays, names=[name for name, _ in fields])
    make_folder(path.parent)
    write_atomically(path, lambda file: parquet.write_table(table, file))


def write_yolo(folder: Path, stems: Sequence[str], pictures: Iterable[Found]) -> None:
    """Write a text file for every picture, one line a detection: class, centre x, y, width, height in [0, 1], score.

    Args:
        folder: of the files.
        stems: file name of every picture of the run, without suffix.
        pictures: of a shard.
    """
    for found in pictures:
        if found.problem:
            continue
        lines = []
        for (x0, y0, x1, y1), score, label in zip(found.boxes, found.scores, found.labels, strict=True):
            place = ((x0 + x1) / 2 / found.width, (y0 + y1) / 2 / found.height)
            size = ((x1 - x0) / found.width, (y1 - y0) / found.height)
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in (*place, *size)), f"{score:.4f}"]))
        path = folder / f"{stems[found.number]}.txt"
        _make_parent(path, folder)
        write_text_atomically(path, "".join(f"{line}\n" for line in lines))


def write_pictures(
    folder: Path,
    stems: Sequence[str],
    read: Callable[[Any], np.ndarray],
    pictures: Iterable[tuple[Found, Any]],
    class_names: Sequence[str],
    caption: str,
) -> None:
    """Write a JPEG of every picture with its detections, at least 1280 pixels wide or high, so that they can be read.

    Args:
        folder: of the files.
        stems: file name of every picture of the run, without suffix.
        read: returns a picture as (H, W, 3) uint8 RGB.
        pictures: what was found, and the picture as `read` takes it.
        class_names: by class index.
        caption: stands below every picture.
    """
    from PIL import Image

    for found, picture in pictures:
        if found.problem:
            continue
        path = folder / f"{stems[found.number]}.jpg"
        _make_parent(path, folder)
        drawn = Image.fromarray(draw_detections(read(picture), list_found(found, class_names), caption=caption))
        write_atomically(path, lambda file, drawn=drawn: drawn.save(file, "JPEG", quality=JPEG_QUALITY))


def list_found(found: Found, class_names: Sequence[str]) -> list[Detection]:
    """Return detections as they are drawn."""
    names = dict(enumerate(class_names))
    rows = zip(found.boxes, found.scores, found.labels, strict=True)
    return [Detection(tuple(box), score, label, names.get(label, str(label))) for box, score, label in rows]


def _make_parent(path: Path, folder: Path) -> None:
    """Make the folder of a file, which a name from a tar file cannot put elsewhere."""
    if folder.resolve() not in path.resolve().parents:
        raise UserError(f"the name {path.name} of a picture leads out of {folder}; rename it")
    if not path.parent.is_dir():
        make_folder(path.parent)
