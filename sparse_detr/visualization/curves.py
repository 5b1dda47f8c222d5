"""Curves of several trainings side by side, from the `metrics.json` that each has written."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_detr.errors import UserError
from sparse_detr.visualization.figures import LINE_COLORS, add_legend, finish, new_figure, save_figure
from sparse_detr.visualization.names import picture_names

METRICS_FILE = "metrics.json"
PANELS = (
    *("total_loss", "loss_class", "loss_bbox", "loss_giou", "loss_token_score"),
    *("bbox/AP", "bbox/AP50", "tokens/recall", "tokens/kept_share", "tokens/correlation"),
)
"""The metrics that are drawn if a run has them."""
_STYLES = ("-", "--", "-.", ":")
_COLUMNS, _NAME_LENGTH = 3, 40


@dataclass(frozen=True)
class TrainingCurves:
    """The metrics of one training.

    Args:
        name: in the legend.
        series: iterations and values of every metric, iterations rising.
    """

    name: str
    series: Mapping[str, tuple[list[int], list[float]]]

    def final_values(self, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return the last value of the metrics that it has, with its iteration, the largest and the smallest value."""
        found = {}
        for metric in metrics:
            iterations, values = self.series.get(metric, ([], []))
            if values:
                extremes = {"smallest": min(values), "largest": max(values)}
                found[metric] = {"iteration": iterations[-1], "last": values[-1], **extremes}
        return found


def read_runs(paths: Sequence[str]) -> list[TrainingCurves]:
    """Read the metrics of every run; runs get the shortest ends of their paths that tell them apart as names.

    Raises:
        UserError: a run has no metrics, or is named twice.
    """
    files = [_metrics_file(path) for path in paths]
    twice = next((path for path, file in zip(paths, files, strict=True) if files.count(file) > 1), None)
    if twice is not None:
        raise UserError(f"the run {twice} is named twice; name each once")
    return [TrainingCurves(name, _read(file)) for name, file in zip(_names(files), files, strict=True)]


def _metrics_file(path: str) -> Path:
    """Return the absolute path of the metrics of a run, which is a folder or the file itself."""
    file = Path(path) / METRICS_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        what = f"the folder {path} has no {METRICS_FILE}" if Path(path).is_dir() else f"there is no run {path}"
        raise UserError(f"{what}; name the output folder of a training")
    return file.resolve()


def _names(files: Sequence[Path]) -> list[str]:
    folders = [file.parent.parts if file.name == METRICS_FILE else file.parts for file in files]
    length = 1
    while len({folder[-length:] for folder in folders}) < len(folders):
        length += 1
    return ["/".join(folder[-length:]) for folder in folders]


def _read(file: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Read the lines of a metrics file.

    A resumed training writes some iterations again: of each metric, what is written later counts. A line that a kill
    has cut off is left out, and so are values that are not finite.
    """
    series: dict[str, tuple[list[int], list[float]]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(f"{file} cannot be read ({reason}); name the output folder of a training") from error
    for line in lines:
        for metric, iteration, value in _values(line):
            iterations, values = series.setdefault(metric, ([], []))
            while iterations and iterations[-1] >= iteration:
                iterations.pop()
                values.pop()
            iterations.append(iteration)
            values.append(value)
    if not series:
        raise UserError(f"{file} holds no metrics; the training has not written any yet, or it is another kind of file")
    return series


def _values(line: str) -> list[tuple[str, int, float]]:
    try:
        entry = json.loads(line)
    except ValueError:
        return []
    if not isinstance(entry, dict) or not isinstance(entry.get("iteration"), int):
        return []
    return [
        (name, entry["iteration"], float(value))
        for name, value in entry.items()
        if name != "iteration" and isinstance(value, int | float) and math.isfinite(value)
    ]


def choose_panels(runs: Sequence[TrainingCurves], more: Sequence[str] = ()) -> list[str]:
    """Return the metrics to draw: those of `PANELS` that a run has, then `more`.

    Raises:
        UserError: no run has one of `more`, or there is nothing to draw.
    """
    known = {metric for run in runs for metric in run.series}
    for metric in more:
        if metric not in known:
            close = difflib.get_close_matches(metric, known, 3, 0.5) or sorted(known)
            raise UserError(f"no run has the metric {metric!r}; there are {', '.join(close[:10])}")
    panels = list(dict.fromkeys([*(metric for metric in PANELS if metric in known), *more]))
    if not panels:
        raise UserError(
            f"no run has a loss or a score; name a metric with --metric, of {', '.join(sorted(known)[:10])}"
        )
    return panels


def running_mean(values: Sequence[float], window: int) -> np.ndarray:
    """Return the mean of `window` values around each; fewer at the ends, as many on either side."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum((window - 1) // 2, np.minimum(places, len(values) - 1 - places))
    return (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)


def draw_curves(runs: Sequence[TrainingCurves], panels: Sequence[str], path: Path, *, smooth: int = 5) -> None:
    """Write a picture with a panel a metric and a line a run.

    Args:
        runs: in the order of the legend.
        panels: the metrics.
        path: PNG file.
        smooth: an odd number of logged values; losses are drawn as their running mean, with the logged values pale.
    """
    from matplotlib.lines import Line2D

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = new_figure(4.4 * columns, 2.9 * rows + 0.9, rows=rows, columns=columns, squeeze=False)
    for axis, metric in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, runs, metric, smooth)
    last = max(run.series[metric][0][-1] for run in runs for metric in panels if metric in run.series)
    for axis in axes.flat:
        axis.set_xlim(0, 1.1 * max(last, 1))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    lines = [Line2D([], [], **_style(number)) for number in range(len(runs))]
    instead = [f"run {number}" for number in range(1, len(runs) + 1)]
    names = picture_names([run.name for run in runs], instead, length=_NAME_LENGTH)
    add_legend(figure, lines, names, "outside upper left", most=4)
    if smooth > 1:
        text = f"losses: mean of {smooth} logged values; pale: as logged (Detectron2 logs the median of 20 iterations)"
        figure.supxlabel(text, fontsize=8, color="#666666")
    save_figure(figure, path)


def _style(number: int) -> dict[str, Any]:
    style = _STYLES[number // len(LINE_COLORS) % len(_STYLES)]
    return {"color": LINE_COLORS[number % len(LINE_COLORS)], "linestyle": style, "linewidth": 1.6}


def _draw_panel(axis: Any, runs: Sequence[TrainingCurves], metric: str, smooth: int) -> None:
    is_loss = "loss" in metric
    for number, run in enumerate(runs):
        iterations, values = run.series.get(metric, ([], []))
        if not values:
            continue
        style = _style(number)
        if is_loss and smooth > 1:
            axis.plot(iterations, values, **{**style, "linewidth": 0.8, "alpha": 0.3})
            values = running_mean(values, smooth).tolist()
        marker = "o" if len(values) < 15 else ""
        axis.plot(iterations, values, **style, marker=marker, markersize=3.5)
    finish(axis, metric)
    axis.set_xlabel("iterations", fontsize=8)
    axis.tick_params(labelsize=8)
    if not is_loss:
        _name_last_values(axis, runs, metric)


def _name_last_values(axis: Any, runs: Sequence[TrainingCurves], metric: str) -> None:
    """Write the last value of every run beside the end of its line, close ones below each other."""
    runs_with_it = [(run.series[metric], number) for number, run in enumerate(runs) if metric in run.series]
    low, high = axis.get_ylim()
    place = math.inf
    for (iterations, values), number in sorted(runs_with_it, key=lambda entry: -entry[0][1][-1]):
        place = min(values[-1], place - 0.07 * (high - low))
        color = _style(number)["color"]
        text = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": color}
        axis.annotate(f"{values[-1]:.3g}", (iterations[-1], place), xytext=(5, 0), annotation_clip=False, **text)
