"""The files that a demo leaves behind for one image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_detr.visualization.detections import Detection, draw_detections
from sparse_detr.visualization.token_maps import TokenMaps
from sparse_detr.visualization.views import attention_heat, heat_page, kept_tokens_page, overview_page, score_heat


def write_files(
    prefix: Path, image: np.ndarray, detections: Sequence[Detection], maps: TokenMaps, *, caption: str
) -> None:
    """Write `<prefix>_detections.png`, `_tokens.png`, `_scores.png`, `_attention.png`, `_overview.png` and `.json`.

    Pictures of tokens and scores are left out for a dense encoder, that of attention without an attention map.

    Args:
        prefix: path and beginning of the file names.
        image: (H, W, 3) uint8 RGB.
        detections: in pixels of the image.
        maps: tokens of the image.
        caption: what the picture of the detections says of their choice.
    """
    drawn = draw_detections(image, detections, caption=caption)
    objects = f"{len(detections)} object{'' if len(detections) == 1 else 's'}"
    pictures = {
        "detections": drawn,
        "overview": overview_page(image, drawn, maps, title=f"{prefix.name}: {objects}"),
    }
    if maps.scores is not None:
        pictures["tokens"] = kept_tokens_page(image, maps)
    for name, heat in (("scores", score_heat(image, maps)), ("attention", attention_heat(image, maps))):
        if heat is not None:
            pictures[name] = heat_page(image, heat)
    for name, picture in pictures.items():
        Image.fromarray(picture).save(f"{prefix}_{name}.png", compress_level=2)
    _write_json(Path(f"{prefix}.json"), image, detections, maps)


def _write_json(path: Path, image: np.ndarray, detections: Sequence[Detection], maps: TokenMaps) -> None:
    height, width = image.shape[:2]
    content = {
        "height": height,
        "width": width,
        "kept_share": maps.kept_share,
        "kept_share_of_levels": list(maps.kept_shares),
        "detections": [asdict(detection) for detection in detections],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
