"""The files that a demo leaves behind for one image."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_detr.files import write_atomically
from sparse_detr.visualization.detections import Detection, draw_detections
from sparse_detr.visualization.figures import png_of_picture
from sparse_detr.visualization.token_maps import TokenMaps
from sparse_detr.visualization.views import (
    OVERVIEW_ZOOM,
    attention_heat,
    heat_page,
    kept_tokens_page,
    overview_page,
    pooled_tokens_page,
    sampled_points_page,
    score_heat,
)


def write_files(
    prefix: Path,
    image: np.ndarray,
    detections: Sequence[Detection],
    maps: TokenMaps,
    *,
    caption: str,
    origin: Mapping[str, Any],
) -> None:
    """Write the pictures of an image, such as `<prefix>_detections.png` and `<prefix>_overview.png`, and its `.json`.

    The picture of tokens is left out if all are kept and none is scored, that of scores without a scorer, that of
    attention without an attention map, that of points without sparse tokens, that of pooling without pooled tokens.

    Args:
        prefix: path and beginning of the file names.
        image: (H, W, 3) uint8 RGB.
        detections: in pixels of the image.
        maps: tokens of the image.
        caption: what the picture of the detections says of their choice.
        origin: what else the JSON file says: the image's file, the weights, the classes.

    Raises:
        UserError: a file cannot be written; says why.
    """
    zoomed = draw_detections(image, detections, caption=caption, zoom=OVERVIEW_ZOOM)
    objects = f"{len(detections)} object{'' if len(detections) == 1 else 's'}"
    pictures = {
        "detections": draw_detections(image, detections, caption=caption),
        "overview": overview_page(image, zoomed, maps, title=f"{prefix.name}: {objects}"),
    }
    if maps.scores is not None or maps.is_selective:
        pictures["tokens"] = kept_tokens_page(image, maps)
    if maps.points:
        pictures["points"] = sampled_points_page(image, maps)
    if maps.pooling is not None:
        pictures["pooling"] = pooled_tokens_page(image, maps)
    for name, heat in (("scores", score_heat(image, maps)), ("attention", attention_heat(image, maps))):
        if heat is not None:
            pictures[name] = heat_page(image, heat)
    for name, picture in pictures.items():
        write_picture(Path(f"{prefix}_{name}.png"), picture)
    _write_json(Path(f"{prefix}.json"), image, detections, maps, origin)


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as a PNG file."""
    content = png_of_picture(Image.fromarray(picture))
    write_atomically(path, lambda file: file.write(content))


def _write_json(
    path: Path, image: np.ndarray, detections: Sequence[Detection], maps: TokenMaps, origin: Mapping[str, Any]
) -> None:
    height, width = image.shape[:2]
    content = {
        **origin,
        "height": height,
        "width": width,
        "kept_share": maps.kept_share,
        "kept_share_of_levels": list(maps.kept_shares),
        "detections": [asdict(detection) for detection in detections],
    }
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
