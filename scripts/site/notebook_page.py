"""A notebook as Markdown: text, code, and those outputs that are text or pictures, without warnings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FENCE = "`" * 4


def notebook_page(path: Path) -> str:
    """Return the cells of the notebook at `path` as Markdown; pictures are in the text as data."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
    if cell["cell_type"] == "code":
        yield f"{FENCE}python\n{source}\n{FENCE}"
        for output in cell["outputs"]:
            yield from _output(output)


def _output(output: dict[str, Any]) -> Iterator[str]:
    if output.get("name") == "stderr":
        return
    data = output.get("data", {})
    text = "".join(output.get("text", data.get("text/plain", ""))).rstrip()
    for kind in ("image/jpeg", "image/png"):
        if kind in data:
            yield f"![output of the cell above](data:{kind};base64,{''.join(data[kind].split())})"
            return
    if text:
        yield f"{FENCE}text\n{text}\n{FENCE}"
