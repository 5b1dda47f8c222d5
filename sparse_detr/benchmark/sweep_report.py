"""The results of a sweep for people: a table, two answers in words, and one picture."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparse_detr.benchmark.sweep import Entry, Record, knee
from sparse_detr.budget_table import Entry as Measured
from sparse_detr.budget_table import best_within, cheapest_near_best, measured_entries
from sparse_detr.visualization.figures import new_figure, save_figure

SCORES = ("AP", "AP50", "APs", "APm", "APl")
COLUMNS = (
    "budget",
    "form",
    *SCORES,
    "kept_share",
    "mean_kept_share",
    "token_recall",
    "gigaflops",
    "p50_ms",
    "p90_ms",
    "peak_mib",
)
FORM_COLORS = ("#2f6690", "#d1495b", "#7fb069", "#8c8a3c", "#3a8f86")
SIZE_COLORS = {"APs": "#7fb069", "APm": "#3a8f86", "APl": "#1b2a49"}


def flat(entry: Entry) -> dict[str, Any]:
    """Return an entry with one value a column; None where nothing was measured."""
    scores, times = entry["scores"] or {}, entry["milliseconds"] or {}
    row = {column: entry.get(column) for column in COLUMNS}
    row |= {score: scores.get(score) for score in SCORES}
    return row | {"p50_ms": times.get("p50"), "p90_ms": times.get("p90")}


def as_csv(record: Record) -> str:
    """Return the table as CSV, an entry a line; the last column says what disturbed the times, if anything."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [*COLUMNS, "disturbance"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat(entry) | {"disturbance": record["disturbance"]} for entry in record["entries"])
    return file.getvalue()


def as_markdown(record: Record) -> str:
    """Return the table as Markdown."""
    from sparse_detr.analysis.tables import markdown_table

    head = [
        *("budget", "form", "AP", "AP50", "AP small", "medium", "large"),
        *("kept, first layer", "kept, mean", "boxes covered", "GFLOPs", "ms p50", "p90", "MiB"),
    ]
    return markdown_table(head, [_cells(flat(entry)) for entry in record["entries"]])


def _cells(row: dict[str, Any]) -> list[str]:
    shares = [_number(row[name], "{:.1%}") for name in ("kept_share", "mean_kept_share", "token_recall")]
    scores = [_number(row[name], "{:.1f}") for name in SCORES]
    costs = [_number(row["gigaflops"], "{:.3g}"), *(_number(row[name], "{:.4g}") for name in COLUMNS[-3:])]
    return [f"`{row['budget']}`", row["form"], *scores, *shares, *costs]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def answers(record: Record, *, within_ap: float, under_ms: float | None) -> list[str]:
    """Return the answers in words: the cheapest budget near the best AP, and the best one within a time.

    Args:
        record: the table.
        within_ap: the largest loss of AP.
        under_ms: the largest time; None for no such question.
    """
    entries = measured_entries(record)
    if not entries:
        return ["no entry has both AP and time, so the table cannot say which budget to take"]
    best = max(entries, key=lambda entry: (entry.score, -entry.milliseconds))
    cheap = cheapest_near_best(entries, within_ap)
    assert cheap is not None
    found = [
        f"the cheapest budget with AP within {within_ap:g} of the best: {_named(cheap)}, AP {cheap.score:.1f} in "
        f"{cheap.milliseconds:.4g} ms (the best: {_named(best)}, AP {best.score:.1f} in {best.milliseconds:.4g} ms)"
    ]
    if under_ms is not None:
        fast = best_within(entries, under_ms)
        found.append(
            f"no budget takes at most {under_ms:g} ms"
            if fast is None
            else f"the best AP under {under_ms:g} ms: {_named(fast)}, AP {fast.score:.1f} in {fast.milliseconds:.4g} ms"
        )
    return found


def _named(entry: Measured) -> str:
    return f"--budget {entry.budget}" + ("" if entry.form == "plain" else f" --optimize {entry.form}")


def draw(record: Record, path: Path) -> None:
    """Write the picture: AP against time, against FLOPs, and by object size against the share of kept tokens."""
    figure, (times, flops, sizes) = new_figure(15, 4.8, columns=3)
    rows = [flat(entry) for entry in record["entries"] if entry["scores"]]
    forms = list(dict.fromkeys(row["form"] for row in rows))
    for form, color in zip(forms, FORM_COLORS, strict=False):
        _line(times, [row for row in rows if row["form"] == form], "p50_ms", form, color)
    first = [row for row in rows if row["form"] == forms[0]] if forms else []
    _line(flops, first, "gigaflops", "all forms" if len(forms) > 1 else forms[0] if forms else "", FORM_COLORS[0])
    _draw_sizes(sizes, first)
    _label(times, "milliseconds an image (median)", "AP against time")
    _label(flops, "GFLOPs an image", "AP against FLOPs")
    _label(sizes, "share of the tokens in a layer (mean), %", "by object size")
    figure.suptitle(origin(record), fontsize=9, x=0.01, ha="left")
    save_figure(figure, path, 120)


def _line(axis: Any, rows: Sequence[dict[str, Any]], cost: str, name: str, color: str) -> None:
    """Draw AP over a cost: shares of all tokens as a line, other budgets as points; the knee in a ring."""
    rows = sorted((row for row in rows if row[cost] is not None and row["AP"] is not None), key=lambda row: row[cost])
    if not rows:
        return
    shares = [row for row in rows if _is_share(row["budget"])]
    others = [row for row in rows if not _is_share(row["budget"])]
    axis.plot([row[cost] for row in shares], [row["AP"] for row in shares], "o-", color=color, ms=4, label=name)
    if others:
        axis.plot([row[cost] for row in others], [row["AP"] for row in others], "D", color=color, ms=5, mfc="white")
    for row in rows:
        axis.annotate(
            row["budget"], (row[cost], row["AP"]), xytext=(4, -9), textcoords="offset points", fontsize=7, color="0.35"
        )
    best = knee([(row[cost], row["AP"]) for row in rows])
    if best is not None:
        row = rows[best]
        axis.plot(row[cost], row["AP"], "o", ms=13, mfc="none", color=color)
        axis.annotate(
            "knee",
            (row[cost], row["AP"]),
            xytext=(-4, 9),
            textcoords="offset points",
            fontsize=8,
            ha="right",
            color=color,
        )


def _draw_sizes(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    rows = sorted((row for row in rows if _is_share(row["budget"])), key=lambda row: row["mean_kept_share"] or 0)
    names = {"APs": "AP small", "APm": "AP medium", "APl": "AP large"}
    for score, color in SIZE_COLORS.items():
        known = [row for row in rows if row[score] is not None]
        if not known:
            continue
        axis.plot(
            [100 * row["mean_kept_share"] for row in known],
            [row[score] for row in known],
            "o-",
            color=color,
            ms=4,
            label=names[score],
        )
    covered = [row for row in rows if row["token_recall"] is not None]
    axis.plot(
        [100 * row["mean_kept_share"] for row in covered],
        [100 * row["token_recall"] for row in covered],
        "s--",
        color="#d1495b",
        ms=4,
        label="boxes with a kept token, %",
    )


def _is_share(budget: str) -> bool:
    return ":" not in budget


def _label(axis: Any, below: str, title: str) -> None:
    axis.set_xlabel(below)
    axis.set_ylabel("AP")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8, loc="best", framealpha=0.7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def origin(record: Record) -> str:
    """Return what the numbers are of and where the times are from; a machine that was not quiet comes first."""
    setting, machine = record["setting"], record["machine"]
    text = f"{setting.get('config', '')}; evaluated on {setting.get('images', 'all images')}"
    if machine:
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
        device = machine["gpu"]["name"] if machine.get("gpu") else f"{machine['cpu']}, {threads}"
        text += f"; times: {device}, {machine['rounds']} rounds, torch {machine['torch']}, {machine['date']}"
    if record["disturbance"]:
        text = "\n".join(textwrap.wrap(f"NOT A QUIET MACHINE: {record['disturbance']}", 200)) + f"\n{text}"
    return text
