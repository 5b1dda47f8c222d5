"""One HTML file that holds all that it shows: no server, no network, nothing else to load."""

from __future__ import annotations

import base64
import html
import io
import json
from importlib.resources import files
from typing import Any

from PIL import Image


def html_page(package: str, *, title: str, data: Any) -> str:
    """Return the HTML of a page made from `page.html`, `page.css` and `page.js` of a package.

    Args:
        package: such as `sparse_detr.explain`.
        title: of the page.
        data: what the script reads; fit for JSON.
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    text = text.replace("<", "\\u003c")  # neither "</script>" nor "<!--" may be in a script
    page = _asset(package, "page.html")
    for place, filling in {
        "__TITLE__": html.escape(title),
        "__CSS__": _asset(package, "page.css"),
        "__JS__": _asset(package, "page.js"),
        "__DATA__": text,
    }.items():
        page = page.replace(place, filling, 1)
    return page


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8").strip()


def base64_of(content: bytes) -> str:
    """Return bytes as text in base 64."""
    return base64.b64encode(content).decode("ascii")


def jpeg_url(photo: Image.Image) -> str:
    """Return a picture as a data URL of a JPEG file."""
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64_of(file.getvalue())}"


def png_url(content: bytes) -> str:
    """Return the content of a PNG file as a data URL."""
    return f"data:image/png;base64,{base64_of(content)}"
