"""The picture of what `measure_scaling.py curves` measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import scaling_report as report
from matplotlib.axes import Axes
from scaling_report import FORMS, Measured, timed

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - after the choice of the backend

# Brightness tells the models apart in a gray print, markers and lines the forms.
COLORS = {"topk": "#1b2a49", "sparse": "#d9822b"}
STYLES: dict[str, dict[str, Any]] = {
    "plain": {"linestyle": "--", "marker": "o", "markerfacecolor": "white"},
    "fp32": {"linestyle": "-", "marker": "s"},
}
LINES = (("topk", None), ("sparse", 10))


def draw(measured: Sequence[Measured], facts: dict[str, str], path: Path) -> None:
    """Write the picture: time against image, batch and tokens, and the gain against the share of the tokens."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.6), layout="constrained")
    draw_images(axes[0, 0], measured)
    draw_batches(axes[0, 1], measured)
    draw_tokens(axes[1, 0], measured)
    draw_gain(axes[1, 1], measured)
    for axis in axes.flat:
        axis.title.set_fontsize(11)
        axis.grid(alpha=0.3)
        axis.set_xlim(left=0)
        axis.set_ylim(bottom=0)
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize=8, framealpha=0.9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle(
        f"Sparse DETR and its dense twin, ResNet-50, float32, one thread of {facts['cpu']} ({facts['instructions']})",
        fontsize=10,
    )
    figure.savefig(path, dpi=90)
    plt.close(figure)


def label(model: str, percent: int | None, form: str) -> str:
    """Return the name of a line."""
    name = "dense twin" if model == "topk" else report.Cell(model, form, 1, 1, 1, percent).title
    return f"{name}, {'as it is' if form == 'plain' else 'inference form'}"


def draw_images(axis: Axes, measured: Sequence[Measured]) -> None:
    """Draw seconds of one image against its megapixels: points, and the line of the fit."""
    ticks = {}
    for model, percent in LINES:
        for form in FORMS:
            points = timed(measured, model=model, percent=percent, form=form, batch=1)
            x = [found.key.megapixels for found in points]
            ticks.update({place: found.key.width for place, found in zip(x, points, strict=True)})
            seconds = [found.median() / 1000 for found in points]
            style = STYLES[form]
            fit = report.whole_fit(measured, model, percent, form)
            if fit:
                ends = (0, max(x))
                axis.plot(
                    ends, [fit(1, end) / 1000 for end in ends], style["linestyle"], color=COLORS[model], linewidth=1.2
                )
            axis.plot(x, seconds, **{**style, "linestyle": ""}, color=COLORS[model], label=label(model, percent, form))
    wide = axis.secondary_xaxis("top")
    wide.set_xticks(list(ticks), [str(width) for width in ticks.values()], fontsize=7)
    wide.set_xlabel("long side, pixels", fontsize=8)
    axis.set(title="Time against image (lines: linear fits)", xlabel="megapixels", ylabel="seconds an image")


def draw_batches(axis: Axes, measured: Sequence[Measured]) -> None:
    """Draw milliseconds an image against the batch."""
    sizes = {found.key.size for found in timed(measured) if found.key.batch > 1}
    for model, percent in LINES:
        for form in FORMS:
            points = [
                found for found in timed(measured, model=model, percent=percent, form=form) if found.key.size in sizes
            ]
            points.sort(key=lambda found: found.key.batch)
            axis.plot(
                [found.key.batch for found in points],
                [found.median() / found.key.batch for found in points],
                **STYLES[form],
                color=COLORS[model],
                label=label(model, percent, form),
            )
    axis.set(
        title=f"Time against batch, images of {', '.join(sorted(sizes))}",
        xlabel="images in the batch",
        ylabel="milliseconds an image",
    )


def draw_tokens(axis: Axes, measured: Sequence[Measured]) -> None:
    """Draw the encoder's milliseconds against the tokens it refines: points, the line of the fit, the dense twin."""
    size = report.largest_share_size(measured)
    for form in FORMS:
        points, style = report.share_points(measured, form), STYLES[form]
        kept = [found.kept or 0 for found in points]
        fit = report.encoder_fit(measured, form)
        if fit:
            ends = (0, max(kept))
            line = [fit(1, end) for end in ends]
            axis.plot(ends, line, style["linestyle"], color=COLORS["sparse"], linewidth=1.2)
        name = f"Sparse DETR, {'as it is' if form == 'plain' else 'inference form'}"
        if fit:
            name += f": {fit.coefficients[0]:.0f} ms + {1000 * fit.coefficients[1]:.0f} us a token"
        times = [found.median("encoder") for found in points]
        axis.plot(kept, times, **{**style, "linestyle": ""}, color=COLORS["sparse"], label=name)
        twins = [found for found in timed(measured, model="topk", form=form, batch=1) if found.key.size == size]
        axis.plot(
            [found.kept or 0 for found in twins],
            [found.median("encoder") for found in twins],
            **{**style, "linestyle": "", "markersize": 9},
            color=COLORS["topk"],
            label=label("topk", None, form),
        )
    axis.set(
        title=f"The encoder against the tokens that it refines, {size}",
        xlabel="kept tokens",
        ylabel="milliseconds of the encoder",
    )


def draw_gain(axis: Axes, measured: Sequence[Measured]) -> None:
    """Draw how many times faster Sparse DETR is than its twin, against the share of the tokens."""
    points = report.share_points(measured, "fp32")
    for part, title, style in (("encoder", "encoder alone", "-^"), ("whole", "end to end", "-s")):
        pairs = [(found, report.twin_of(found, measured)) for found in points]
        known = [(found, twin) for found, twin in pairs if twin is not None and twin.times(part)]
        axis.plot(
            [found.cell["percent"] for found, _ in known],
            [twin.median(part) / found.median(part) for found, twin in known],
            style,
            color=COLORS["sparse" if part == "encoder" else "topk"],
            label=title,
        )
    axis.axhline(1, color="gray", linewidth=1, linestyle=":")
    axis.set(
        title=f"Gain over the dense twin, inference form, {report.largest_share_size(measured)}",
        xlabel="tokens that are refined, percent",
        ylabel="times as fast",
    )
