"""A record of measurements as text: the protocol in words, tables in Markdown, CSV, and the name of its files."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparse_detr.analysis.tables import markdown_table
from sparse_detr.benchmark.timing import percentile

Record = dict[str, Any]
WHOLE = "whole"
COLUMNS = (
    *("model", "note", "batch", "part", "p50_ms", "p90_ms", "gigaflops"),
    *("images_per_second", "parameters", "peak_mib", "AP", "quiet_machine"),
)
"""Columns of the CSV: a row for each model, batch size and part; those after `gigaflops` are of the whole alone."""


def whole_ms(record: Record, name: str, batch: int) -> list[float]:
    """Return the milliseconds of a model's whole call in every round."""
    return [sum(times.values()) for times in _contestant(record, name)["milliseconds"][str(batch)]]


def part_ms(record: Record, name: str, batch: int) -> dict[str, list[float]]:
    """Return the milliseconds of every part of a model in every round."""
    turns = _contestant(record, name)["milliseconds"][str(batch)]
    return {part: [times[part] for times in turns] for part in turns[0]}


def _contestant(record: Record, name: str) -> Record:
    return next(contestant for contestant in record["contestants"] if contestant["name"] == name)


def names_of(record: Record) -> list[str]:
    """Return the names of the models, in the order of the command line."""
    return [contestant["name"] for contestant in record["contestants"]]


def parts_in(record: Record) -> list[str]:
    """Return the parts of all models, `rest` last."""
    first = str(record["protocol"]["batch_sizes"][0])
    parts = dict.fromkeys(part for c in record["contestants"] for part in c["milliseconds"][first][0])
    return [*(part for part in parts if part != "rest"), "rest"]


def rows(record: Record) -> Iterable[Record]:
    """Yield a row for each model, batch size and part, the whole first."""
    for contestant in record["contestants"]:
        for batch in record["protocol"]["batch_sizes"]:
            flops = contestant["gigaflops"]
            base = {"model": contestant["name"], "note": contestant["note"], "batch": batch}
            quiet = {"quiet_machine": record["disturbance"] is None}
            whole = whole_ms(record, contestant["name"], batch)
            yield {
                **base,
                **_percentiles(whole),
                "part": WHOLE,
                "gigaflops": None if flops is None else round(sum(flops.values()), 3),
                "images_per_second": round(1e3 * batch / percentile(whole, 50), 6),
                "parameters": contestant["parameters"],
                "peak_mib": contestant["peak_mib"].get(str(batch)),
                "AP": (contestant["scores"] or {}).get("AP"),
                **quiet,
            }
            for part, values in part_ms(record, contestant["name"], batch).items():
                counted = None if flops is None else round(flops.get(part, 0.0), 3)
                yield {**base, **_percentiles(values), "part": part, "gigaflops": counted, **quiet}


def _percentiles(values: list[float]) -> dict[str, float]:
    return {"p50_ms": round(percentile(values, 50), 3), "p90_ms": round(percentile(values, 90), 3)}


def as_csv(record: Record) -> str:
    """Return the rows as CSV; an empty cell means "not measured"."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(record))
    return text.getvalue()


def file_stem(record: Record) -> str:
    """Return the name of the files without its end: config, device, threads, batch sizes, image sizes and rounds."""
    protocol, gpu = record["protocol"], record["machine"]["gpu"]
    device = gpu["name"] if gpu else f"cpu-{protocol['threads']}thread{'s' * (protocol['threads'] > 1)}"
    batches = "b" + "-".join(str(size) for size in protocol["batch_sizes"])
    words = [
        "benchmark",
        Path(record["config"]).stem,
        device,
        batches,
        sizes_text(record),
        f"{protocol['rounds']}rounds",
    ]
    return "_".join(re.sub(r"[^\w-]+", "-", word) for word in words)


def sizes_text(record: Record) -> str:
    """Return the image sizes (height x width): `480x640`, or with least and largest sides `480-800x600-1066`."""
    heights, widths = zip(*record["protocol"]["sizes"], strict=True)
    return "x".join(
        str(min(side)) if min(side) == max(side) else f"{min(side)}-{max(side)}" for side in (heights, widths)
    )


def protocol_text(record: Record) -> str:
    """Return how the numbers were taken, in words."""
    protocol, machine = record["protocol"], record["machine"]
    threads = f"{protocol['threads']} thread{'s' * (protocol['threads'] > 1)}"
    device = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['capability']}, {threads}"
    used = protocol["timed_images"]
    return (
        f"{device} of {machine['cpus']} CPUs; torch {machine['torch']}, attention op {machine['attention_op']}, "
        f"allocator: {machine['allocator']}; {machine['date']}. Config {record['config']}, "
        f"weights {record['weights'] or 'random'}. {used} images of {sizes_text(record)} pixels after the config's "
        f"preprocessing, {min(used, protocol['different_images'])} different ones, fresh in every round; "
        f"{protocol['padding_share']:.1%} of the batches is padding. {protocol['rounds']} rounds after one for "
        "warm-up; in a round all models run in turn on the same batch, in an order that rotates. Wall time from pixels "
        "in memory to detections; a part's time is its own, so parts sum to the whole in every round; p50 and p90 of "
        f"the rounds. One multiply-add is one FLOP, of the first image. Other processes used "
        f"{record['load']['during']:.2f} CPUs."
    )


def as_markdown(record: Record, picture: str | None = None) -> str:
    """Return the report: what disturbed it first, then the tables and the protocol."""
    warning = [f"**Not a quiet machine: {record['disturbance']}.**"] if record["disturbance"] else []
    notes = [f"- {c['name']}: {c['note']}" for c in record["contestants"] if c["note"]]
    sections = [
        *warning,
        cost_table(record),
        f"Milliseconds (p50) and GFLOPs by part, batch {record['protocol']['batch_sizes'][0]}:",
        parts_table(record),
        *(["\n".join(notes)] if notes else []),
        *([f"![Milliseconds by part]({picture})"] if picture else []),
        protocol_text(record),
    ]
    return "\n\n".join(sections) + "\n"


def cost_table(record: Record) -> str:
    """Return the table of whole models: a row for each model and batch size."""
    wholes = [row for row in rows(record) if row["part"] == WHOLE]
    first = {row["batch"]: row["p50_ms"] for row in reversed(wholes)}
    evaluated = any(row["AP"] is not None for row in wholes)
    header = ["model", "batch", "p50 ms", "p90 ms", "images/s", "against the first"]
    header += ["peak MiB", "M weights", "GFLOPs", *(["AP"] if evaluated else [])]
    body = [
        [
            row["model"],
            str(row["batch"]),
            short(row["p50_ms"]),
            short(row["p90_ms"]),
            short(row["images_per_second"]),
            f"{first[row['batch']] / row['p50_ms']:.2f}x",
            _cell(row["peak_mib"], ".0f"),
            f"{row['parameters'] / 1e6:.1f}",
            _cell(row["gigaflops"], ".1f"),
            *([_cell(row["AP"], ".1f")] if evaluated else []),
        ]
        for row in wholes
    ]
    return markdown_table(header, body)


def parts_table(record: Record) -> str:
    """Return the table of parts at the first batch size: milliseconds, and below them the GFLOPs of one image."""
    batch, parts = record["protocol"]["batch_sizes"][0], parts_in(record)
    body = []
    for contestant in record["contestants"]:
        times = part_ms(record, contestant["name"], batch)
        body.append(
            [contestant["name"], "ms", *(short(percentile(times[p], 50)) if p in times else "-" for p in parts)]
        )
        if (flops := contestant["gigaflops"]) is not None:
            body.append([contestant["name"], "GFLOPs", *(_cell(flops.get(part), ".2f") for part in parts)])
    return markdown_table(["model", "", *parts], body)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def short(value: float) -> str:
    """Return three digits of a positive number: `0.123`, `1.23`, `12.3`, `1234`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
