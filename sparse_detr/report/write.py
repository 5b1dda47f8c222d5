"""Write a report: its numbers, its pictures and the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_detr.files import cannot_write, make_folder, write_atomically, write_text_atomically
from sparse_detr.report import NUMBERS, words
from sparse_detr.visualization.figures import png_of_picture
from sparse_detr.visualization.html import html_page, jpeg_url, png_url
from sparse_detr.visualization.report import draw_calibration, draw_confusion, draw_curves, worst_page

PAGE, WORST = "report.html", "worst.png"
PICTURES = {
    "curves.png": ("Curves", draw_curves),
    "confusion.png": ("Confusion matrix", draw_confusion),
    "calibration.png": ("Calibration", draw_calibration),
}
WIDE = "curves.png"  # scrolls on a narrow screen
_ERRORS = {
    "Cls": "wrong class",
    "Loc": "badly localised",
    "Both": "wrong class and place",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def write_report(
    folder: Path,
    numbers: Mapping[str, Any],
    *,
    title: str,
    about: str,
    pictures: Mapping[str, np.ndarray],
) -> list[str]:
    """Write `report.json`, `report.html` and the pictures into a folder.

    Args:
        folder: it is made.
        numbers: see `numbers.report_numbers`, with `sentences`.
        title: of the page.
        about: what the page says about the detections.
        pictures: (H, W, 3) uint8 RGB, by file name, of the images with most errors; of some or of none.

    Returns:
        The names of the files.

    Raises:
        UserError: a file cannot be written.
    """
    make_folder(folder)
    drawn = {name: draw(numbers) for name, (_, draw) in PICTURES.items()}
    shown = [
        {"title": PICTURES[name][0], "url": png_url(content), "is_wide": name == WIDE}
        for name, content in drawn.items()
    ]
    worst = [image for image in numbers["worst"] if image["file_name"] in pictures]
    if worst:
        sheet = Image.fromarray(worst_page(worst, pictures, numbers["classes"]))
        drawn[WORST] = png_of_picture(sheet)
        shown.append({"title": "Images with most errors", "url": jpeg_url(sheet), "is_wide": False})
    else:
        _remove(folder / WORST)  # of an earlier report, with other detections
    page = {
        "about": about,
        "sentences": numbers["sentences"],
        "is_cost": [text == words.duplicates(numbers) for text in numbers["sentences"]],
        "titles": list(words.COLUMNS.values()),
        "rows": words.class_rows(numbers),
        "errors": _errors(numbers),
        "pictures": shown,
    }
    write_text_atomically(folder / NUMBERS, json.dumps(numbers, indent=1, allow_nan=False) + "\n")
    for name, content in drawn.items():
        write_atomically(folder / name, lambda file, content=content: file.write(content))
    write_text_atomically(folder / PAGE, html_page(__package__, title=title, data=page))
    return [NUMBERS, PAGE, *drawn]


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # such as a folder
        raise cannot_write(path, error) from error


def _errors(numbers: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table of TIDE's errors, its titles first."""
    counts, costs = numbers["tide"]["counts"], numbers["tide"]["delta_ap"]
    names = [name for name in _ERRORS if name in counts]
    return [
        ["", *(_ERRORS[name] for name in names)],
        ["errors", *(str(counts[name]) for name in names)],
        ["AP50 that they cost", *(f"{100 * costs[name]:.1f}" for name in names)],
    ]
