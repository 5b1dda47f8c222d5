"""One picture of a benchmark: a bar for each model, divided into its parts."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from sparse_detr.benchmark.report import names_of, part_ms, parts_in, short, sizes_text, whole_ms
from sparse_detr.benchmark.timing import percentile
from sparse_detr.visualization.figures import new_figure, save_figure

# dark and light in turn, so that neighbours differ in a gray print too; hatches tell a second cycle from the first
COLORS = ("#1b2a49", "#7fb069", "#2f6690", "#e8d9a0", "#3a8f86", "#f2efe6", "#8c8a3c")
HATCHES = ("", "////", "....")
LABEL_SHARE = 0.055  # of the longest bar: narrower parts have no number inside


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture of the first batch size; the length of a bar is the median time of the whole."""
    batch, names, parts = record["protocol"]["batch_sizes"][0], names_of(record), parts_in(record)
    wholes = [percentile(whole_ms(record, name, batch), 50) for name in names]
    labels = [textwrap.fill(name, 30) for name in names]
    height = 1.6 + sum(0.35 + 0.17 * label.count("\n") for label in labels) + 0.25 * -(-len(parts) // 4)
    figure, axis = new_figure(9, height)
    lefts = [0.0] * len(names)
    shares = [_shares(record, name, batch) for name in names]
    for index, part in enumerate(parts):
        widths = [share.get(part, 0.0) * whole for share, whole in zip(shares, wholes, strict=True)]
        color = COLORS[index % len(COLORS)]
        axis.barh(
            range(len(names)),
            widths,
            left=lefts,
            height=0.66,
            color=color,
            edgecolor="white",
            linewidth=0.6,
            hatch=HATCHES[index // len(COLORS) % len(HATCHES)],
            label=part,
        )
        for row, (left, width) in enumerate(zip(lefts, widths, strict=True)):
            if width > LABEL_SHARE * max(wholes):
                ink = "white" if _luminance(color) < 0.5 else "black"
                axis.text(left + width / 2, row, short(width), ha="center", va="center", color=ink, fontsize=8)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for row, whole in enumerate(wholes):
        axis.text(whole + 0.01 * max(wholes), row, f"{short(whole)} ms", va="center", fontsize=9, fontweight="bold")
    axis.set_yticks(range(len(names)), labels, fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.13 * max(wholes))
    axis.set_xlabel(f"milliseconds a batch of {batch}, median of {record['protocol']['rounds']} rounds")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.suptitle(_title(record), fontsize=9, x=0.01, ha="left")
    figure.legend(loc="outside lower center", ncols=min(4, len(parts)), fontsize=8, frameon=False)
    save_figure(figure, path, 130)


def _shares(record: dict[str, Any], name: str, batch: int) -> dict[str, float]:
    """Return the share of the whole that a part takes, by medians; the shares sum to 1."""
    medians = {part: percentile(values, 50) for part, values in part_ms(record, name, batch).items()}
    total = sum(medians.values())
    return {part: value / total for part, value in medians.items()}


def _luminance(color: str) -> float:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _title(record: dict[str, Any]) -> str:
    machine, protocol = record["machine"], record["protocol"]
    threads = f"{protocol['threads']} thread{'s' * (protocol['threads'] > 1)}"
    device = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {threads}"
    lines = [f"{sizes_text(record)} pixels; {device}; torch {machine['torch']}; {machine['date']}"]
    if record["disturbance"]:
        lines.insert(0, textwrap.fill(f"NOT A QUIET MACHINE: {record['disturbance']}", 125))
    return "\n".join(lines)
