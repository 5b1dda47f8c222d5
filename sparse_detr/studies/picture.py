"""The frame of the studies' pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparse_detr.visualization.figures import new_figure, save_figure


def figure_of(x: str, y: str) -> tuple[Any, Any]:
    """Return a figure with one axis, with these texts beside it."""
    figure, axes = new_figure(7, 4.2)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def save(figure: Any, axes: Any, path: Path) -> None:
    """Add the legend below the plot, and write the picture."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        figure.legend(loc="outside lower center", ncols=min(2, len(handles)), fontsize=8, frameon=False)
    save_figure(figure, path, 100)
