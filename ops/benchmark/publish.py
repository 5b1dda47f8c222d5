"""Tables and plots from the JSON that the benchmark writes."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from sparse_detr.analysis.tables import markdown_table

Record = dict[str, Any]
COLORS = {"ours": "#1f6fb4", "pytorch": "#7f7f7f", "peer": "#c96f12", "floor": "#c9dff0"}


def median_ms(task: Record, variant: str) -> float:
    return statistics.median(task["milliseconds"][variant])


def ratio(task: Record, slower: str, faster: str) -> tuple[float, float, float]:
    """Return how many times longer one takes: the median over the repetitions' ratios, and their quartiles."""
    times = task["milliseconds"]
    ratios = [long / short for long, short in zip(times[slower], times[faster], strict=True)]
    if len(ratios) == 1:
        return ratios[0], ratios[0], ratios[0]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, low, high


def yardstick(task: Record) -> str:
    """Return the name of the baseline: the composite PyTorch form at its best."""
    return {"plain": "fair", "fused": "eager + fair", "splat": "scatter_add"}[task["form"]]


def kernels(task: Record) -> list[str]:
    """Return our kernels in this form, without the PyTorch fallback and the variants they are compared with."""
    names = [name for name, kind in task["kinds"].items() if kind == "ours" and "reference" not in name]
    return [name for name in names if name.endswith(" fused")] if task["form"] == "fused" else names


def rivals(task: Record, kernel: str) -> list[str]:
    """Return what a kernel's table of ratios names."""
    unfused = [f"eager + {kernel.removesuffix(' fused')}"] if task["form"] == "fused" else []
    peers = [name for name, kind in task["kinds"].items() if kind == "peer"]
    return [name for name in [yardstick(task), *unfused, *peers] if name in task["kinds"]]


def tasks_by_table(results: Record) -> dict[str, list[Record]]:
    """Return the tasks of every table."""
    found: dict[str, list[Record]] = {}
    for task in results["tasks"]:
        found.setdefault(task["group"], []).append(task)
    return found


# Tables


def markdown(results: Record, *, brief: bool = False) -> str:
    """Return the report; if brief, a README's part: the first number of threads, no attention map, no quartiles."""
    parts = [machine_text(results)]
    for name, tasks in tasks_by_table(results).items():
        if brief and (tasks[0]["form"] == "splat" or tasks[0]["threads"] != results["tasks"][0]["threads"]):
            continue
        parts += [f"**{name[0].upper()}{name[1:]}.** Median ms (times faster than `{yardstick(tasks[0])}`)"]
        parts += [time_table(tasks)]
        parts += brief_comparisons(tasks, results) if brief else comparisons(tasks, results)
    if results["memory"]:
        parts += [memory_note(results), memory_table(results["memory"])]
    parts += [missing_text(results)]
    return "\n\n".join(part for part in parts if part)


def comparisons(tasks: list[Record], results: Record) -> list[str]:
    """Compare our kernels by ratios and bounds. The attention map's only peer is in the table of times."""
    parts = []
    if tasks[0]["form"] != "splat":
        for kernel in kernels(tasks[0]):
            parts += [f"Times faster `{kernel}` is: median of paired ratios (quartiles)", ratio_table(tasks, kernel)]
        if kernels(tasks[0]):
            parts += [roofline_note(tasks, results), roofline_table(tasks, results)]
    return parts


def brief_comparisons(tasks: list[Record], results: Record) -> list[str]:
    """Make one table for each of our kernels: what the table of times does not say."""
    floor = floor_of(tasks)
    bounds = f"the compulsory traffic at {copy_speed(tasks, results)}" + (f"; {FLOOR_NOTE}" if floor else "")
    parts = []
    for kernel in kernels(tasks[0]):
        names = [name for name in rivals(tasks[0], kernel) if name != yardstick(tasks[0])]
        header = ["", *(f"than {name}" for name in names), "of bandwidth", *(["of L1"] if floor else [])]
        rows = (
            [
                row_name(task),
                *(brief_ratio_cell(task, name, kernel) for name in names),
                bandwidth_cell(task, results, kernel),
                *([floor_cells(task, kernel, floor)[1]] if floor else []),
            ]
            for task in tasks
        )
        parts += [f"Times faster `{kernel}` is, and its shares of bounds: {bounds}", markdown_table(header, rows)]
    return parts


def machine_text(results: Record) -> str:
    machine = results["machine"]
    device = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['cores']} cores"
    path = "" if machine["gpu"] else f", CPU path {machine['cpu_path']}"
    lines = [
        f"{device}{path}; torch {machine['torch']}, Python {machine['python']}; allocator: {results['allocator']}; "
        f"load before {machine['load_average_before']}; commit {machine['commit']}, {machine['date']}.",
        f"Variants interleaved, fresh random inputs each time, {results['repetitions']} repetitions"
        + (" on a tiny pyramid: these numbers say nothing." if results["quick"] else "."),
    ]
    return "\n".join(lines)


def short(number: float) -> str:
    """Return three digits, or all digits before the point if there are more."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def row_name(task: Record) -> str:
    return f"{task['case']}, {task['direction']}"


def time_table(tasks: list[Record]) -> str:
    names = [name for name in tasks[0]["kinds"] if tasks[0]["kinds"][name] != "floor"]
    rows = ([row_name(task), *(time_cell(task, name) for name in names)] for task in tasks)
    return markdown_table(["", *names], rows)


def time_cell(task: Record, name: str) -> str:
    if name not in task["milliseconds"]:
        return "-"
    text = short(median_ms(task, name))
    if name == yardstick(task):
        return text
    return f"{text} ({short(ratio(task, yardstick(task), name)[0])}x)"


def ratio_table(tasks: list[Record], kernel: str) -> str:
    names = rivals(tasks[0], kernel)
    rows = ([row_name(task), *(ratio_cell(task, name, kernel) for name in names)] for task in tasks)
    return markdown_table(["", *(f"than {name}" for name in names)], rows)


def ratio_cell(task: Record, slower: str, faster: str) -> str:
    if slower not in task["milliseconds"]:
        return "-"
    return "{}x ({} to {})".format(*map(short, ratio(task, slower, faster)))


def brief_ratio_cell(task: Record, slower: str, faster: str) -> str:
    return f"{short(ratio(task, slower, faster)[0])}x" if slower in task["milliseconds"] else "-"


def bandwidth_of(task: Record, results: Record) -> float:
    """Return the GB/s of a large copy with the task's threads."""
    return results["bandwidth"][str(task["threads"])]


def copy_speed(tasks: list[Record], results: Record) -> str:
    return f"the {bandwidth_of(tasks[0], results):.3g} GB/s of a large copy"


# Our time there holds the copy of the value, the floor does not.
FLOOR_NOTE = "the same kernel without a copy of the value and with every load of it in L1"


def roofline_note(tasks: list[Record], results: Record) -> str:
    note = f"Compulsory traffic, its time at {copy_speed(tasks, results)}, and that time's share of a kernel's"
    return note + (f"; last, time and share of {FLOOR_NOTE}" if floor_of(tasks) else "")


def floor_of(tasks: list[Record]) -> str | None:
    """Return the variant that is no implementation but a bound of ours, measured in some of the tasks."""
    kinds = ((name, kind) for task in tasks for name, kind in task["kinds"].items())
    return next((name for name, kind in kinds if kind == "floor"), None)


def roofline_table(tasks: list[Record], results: Record) -> str:
    floor = floor_of(tasks)
    names = kernels(tasks[0])
    header = ["", "MB", "ms", *names, *(["ms in L1", f"{names[0]}, of that"] if floor else [])]
    rows = (
        [
            *(row_name(task), short(task["compulsory_bytes"] / 1e6), short(least_ms(task, results))),
            *(bandwidth_cell(task, results, name) for name in names),
            *(floor_cells(task, names[0], floor) if floor else []),
        ]
        for task in tasks
    )
    return markdown_table(header, rows)


def least_ms(task: Record, results: Record) -> float:
    """Return the milliseconds that the compulsory traffic takes."""
    return task["compulsory_bytes"] / 1e6 / bandwidth_of(task, results)


def bandwidth_cell(task: Record, results: Record, kernel: str) -> str:
    return f"{short(100 * least_ms(task, results) / median_ms(task, kernel))} %"


def floor_cells(task: Record, kernel: str, floor: str) -> tuple[str, str]:
    """Return the floor's time, and its share of the kernel's."""
    if floor not in task["milliseconds"]:
        return "-", "-"
    return short(median_ms(task, floor)), f"{100 / ratio(task, kernel, floor)[0]:.3g} %"


def memory_note(results: Record) -> str:
    return "Peak extra memory in MiB, output and gradients counted: " + (
        "PyTorch's allocator, max_memory_allocated."
        if results["machine"]["gpu"]
        else "high-water mark of resident memory of a fresh process, one thread, allocator as the system has it."
    )


def memory_table(records: list[Record]) -> str:
    columns = list(dict.fromkeys(memory_column(record) for record in records))
    rows: dict[tuple[str, str], dict[str, float]] = {}
    for record in records:
        rows.setdefault((record["form"], record["variant"]), {})[memory_column(record)] = record["mib"]
    cells = ([name, *(memory_cell(row, column) for column in columns)] for (_, name), row in rows.items())
    return markdown_table(["", *columns], cells)


def memory_cell(row: dict[str, float], column: str) -> str:
    return f"{row[column]:.1f}" if column in row else "-"


def memory_column(record: Record) -> str:
    return f"{record['dtype']}, {record['case']}, {record['direction']}"


def missing_text(results: Record) -> str:
    lines = [f"- {name}: {reason.splitlines()[0]}" for name, reason in sorted(results["missing"].items())]
    return "\n".join(["Not measured:", *lines]) if lines else ""


# Plots


def plot_tables(results: Record, stem: Path) -> list[Path]:
    """Draw one picture for each table: a panel for each case and direction, bars relative to the time of `fair`."""
    paths = []
    for name, tasks in tasks_by_table(results).items():
        path = stem.with_name(f"{stem.name}_{slug(name)}.png")
        plot_table(name, tasks, results, path)
        paths.append(path)
    return paths


def slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.split(", CUDA")[0].split(" time")[0].split(", wall")[0].split(", thread CPU")[0])


def plot_table(name: str, tasks: list[Record], results: Record, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    directions = list(dict.fromkeys(task["direction"] for task in tasks))
    cases = list(dict.fromkeys(task["case"] for task in tasks))
    bars = max(len(shown(task)) for task in tasks)
    size = (7.2 * len(directions), 0.8 + len(cases) * (0.6 + 0.26 * bars))
    figure, axes = pyplot.subplots(len(cases), len(directions), figsize=size, squeeze=False, layout="constrained")
    for task in tasks:
        plot_task(axes[cases.index(task["case"])][directions.index(task["direction"])], task)
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
    machine = results["machine"]
    device = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']}, {machine['cpu_path']}"
    warning = "tiny pyramid, these numbers say nothing\n" if results["quick"] else ""
    legend = f"Bars: time relative to {yardstick(tasks[0])}; x: times faster"
    title = f"{warning}{name[0].upper()}{name[1:]}\n{device}; torch {machine['torch']}. {legend}"
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def shown(task: Record) -> list[str]:
    """Return the variants, slowest first."""
    names = [name for name in task["milliseconds"] if task["kinds"][name] != "floor"]
    return sorted(names, key=lambda name: -median_ms(task, name))


def plot_task(axis: Any, task: Record) -> None:
    names = shown(task)
    base = yardstick(task)
    relative = [1 / ratio(task, base, name)[0] for name in names]
    axis.barh(range(len(names)), relative, color=[COLORS[task["kinds"][name]] for name in names], height=0.72)
    longest = max(relative)
    for row, (name, length) in enumerate(zip(names, relative, strict=True)):
        faster = "" if name == base else f"  {1 / length:.3g}x"
        text = f"{short(median_ms(task, name))} ms{faster}"
        inside = length > 0.75 * longest
        axis.text(
            length - 0.01 * longest if inside else length + 0.01 * longest,
            row,
            text,
            va="center",
            ha="right" if inside else "left",
            color="white" if inside else "black",
            fontsize=9,
        )
    axis.set_yticks(range(len(names)), names, fontsize=9)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axis.set_xlim(0, 1.02 * longest)
    axis.set_title(row_name(task), fontsize=10, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
