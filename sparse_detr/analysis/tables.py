"""Measured numbers as Markdown: tables, means with deviations, and the marked parts of a README."""

import re
import statistics
from collections.abc import Iterable, Sequence
from decimal import ROUND_DOWN, Decimal
from os import PathLike
from pathlib import Path

from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown.

    Args:
        header: names of the columns.
        rows: the cells of every row, as many as there are columns.
    """
    return "\n".join(markdown_rows(header, rows))


def markdown_rows(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterable[str]:
    """Yield the lines of a table in Markdown, each as soon as its row is known."""
    header = list(header)
    yield _row(header)
    yield _row("---" for _ in header)
    yield from map(_row, rows)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.splitlines()).replace("|", "\\|") for cell in cells) + " |"


def mean_and_deviation(values: Sequence[float], *, digits: int = 1) -> str:
    """Return `mean ± standard deviation`, or the value alone if there is one."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def fill_readme(readme: str | PathLike, name: str, text: str) -> None:
    """Put text between the lines `<!-- table NAME -->` and `<!-- end NAME -->` of a README.

    Raises:
        UserError: the README has no such lines, or cannot be read or written.
    """
    start, end = f"<!-- table {name} -->", f"<!-- end {name} -->"
    try:
        before = Path(readme).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UserError(f"{readme} cannot be read ({reason}); give a file with the lines {start} and {end}") from error
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(before):
        raise UserError(f"{readme} has no lines {start} and {end}; put them where the table shall stand")
    write_text_atomically(readme, pattern.sub(lambda _: f"{start}\n{text}\n{end}", before))


def threshold_text(value: float | None) -> str:
    """Return a threshold rounded down, so that the detections that it keeps stay; one below 0.01 with three digits."""
    if value is None:
        return "-"
    exact = Decimal(repr(value))
    place = -3 if value >= 0.01 or not value else exact.adjusted() - 2
    rounded = exact.quantize(Decimal(1).scaleb(place), ROUND_DOWN)
    return f"{rounded:f}" if place > -9 else f"{rounded:.2e}"
