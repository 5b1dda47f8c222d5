"""Figures of matplotlib as PNG."""

from __future__ import annotations

import io
from typing import Any


def new_figure(*size: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """Return a figure of a size in inches that needs no screen, and its axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=size, layout="constrained")


def png_of(figure: Any) -> bytes:
    """Return a figure as the content of a PNG file, and close it."""
    from matplotlib import pyplot

    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    pyplot.close(figure)
    return content.getvalue()
