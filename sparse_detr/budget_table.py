"""The measured table of `sparse-detr sweep`: which budget is the best one within a time, or the cheapest good one."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sparse_detr.errors import UserError

TABLE = Path("sweep", "sweep.json")
"""Where `sparse-detr sweep` writes its table, in the folder of the weights."""
PLAIN = "plain"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One measured budget.

    Args:
        budget: as `parse_budget` reads it.
        form: `plain`, or the precision of the inference form.
        score: AP, in percent.
        milliseconds: of one image, the median.
        gigaflops: of one image, the mean; None if they were not counted.
    """

    budget: str
    form: str
    score: float
    milliseconds: float
    gigaflops: float | None = None


def read_table(path: str | os.PathLike[str]) -> list[Entry]:
    """Return the measured entries of a table.

    Raises:
        UserError: there is no such file, or it is not a table of `sparse-detr sweep`.
    """
    return _read(path)[1]


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Entry]]:
    """Return a table and its measured entries."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        return {**record, "setting": dict(record.get("setting") or {})}, measured_entries(record)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); measure the budgets first: sparse-detr sweep"
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a table of `sparse-detr sweep` ({error!r}); write it anew") from error


def measured_entries(record: Any) -> list[Entry]:
    """Return the entries of a table that have a score and a time."""
    return [
        Entry(
            budget=row["budget"],
            form=row["form"],
            score=float(row["scores"]["AP"]),
            milliseconds=float(row["milliseconds"]["p50"]),
            gigaflops=row.get("gigaflops"),
        )
        for row in record["entries"]
        if row.get("scores") and row["scores"].get("AP") is not None and row.get("milliseconds")
    ]


def best_within(entries: Sequence[Entry], milliseconds: float) -> Entry | None:
    """Return the entry with the highest score within a time, of equal ones the fastest; None if all take longer."""
    fast = [entry for entry in entries if entry.milliseconds <= milliseconds]
    return max(fast, key=lambda entry: (entry.score, -entry.milliseconds), default=None)


def cheapest_near_best(entries: Sequence[Entry], loss: float) -> Entry | None:
    """Return the fastest entry whose score is at most `loss` below the best one; None without entries."""
    best = max((entry.score for entry in entries), default=math.nan)
    near = [entry for entry in entries if entry.score >= best - loss]
    return min(near, key=lambda entry: (entry.milliseconds, -entry.score), default=None)


def check_limit(name: str, text: str) -> tuple[float, str | None]:
    """Return the milliseconds and the file of a text like `ms:30` or `ms:30@sweep.json`.

    Raises:
        UserError: it is not of this form; names the option `name`.
    """
    limit, _, file = text.removeprefix("ms:").partition("@")
    try:
        milliseconds = float(limit)
    except ValueError:
        milliseconds = math.nan
    if not (0 < milliseconds < math.inf):
        raise UserError(f"{name} {text!r} is no time; give milliseconds above 0 like ms:30, or ms:30@sweep.json")
    return milliseconds, file or None


def budget_within(text: str, weights: str, form: str, *, ema: bool = False) -> str:
    """Return the budget that a text like `ms:30` means for a model.

    Args:
        text: `ms:30` reads the table in the folder of the weights, `ms:30@sweep.json` that file.
        weights: checkpoint of the model.
        form: `plain`, or the precision of the inference form.
        ema: the model has the averaged weights of the checkpoint.

    Raises:
        UserError: there is no table, it is of other weights, none of its budgets was measured with the form, or all
            take longer.
    """
    milliseconds, file = check_limit("budget", text)
    path = Path(file) if file else Path(weights).parent / TABLE
    record, entries = _read(path)
    _check_weights(path, record["setting"], weights, ema=ema)
    measured = [entry for entry in entries if entry.form == form]
    if not measured:
        forms = ", ".join(sorted({entry.form for entry in entries})) or "none"
        raise UserError(f"{path} has no times of the {form} form, only of: {forms}; measure it with sparse-detr sweep")
    chosen = best_within(measured, milliseconds)
    if chosen is None:
        fastest = min(measured, key=lambda entry: entry.milliseconds)
        raise UserError(
            f"budget {text}: every budget of {path} takes longer; the fastest, {fastest.budget}, takes "
            f"{fastest.milliseconds:.3g} ms"
        )
    if disturbance := record.get("disturbance"):
        logger.warning(
            "%s has times of a machine that was not quiet: %s; run sparse-detr sweep again", path, disturbance
        )
    return chosen.budget


def _check_weights(path: Path, setting: dict[str, Any], weights: str, *, ema: bool) -> None:
    """Refuse a table of other weights, where both are known."""
    if setting.get("ema", ema) != ema:
        kind, other, option = ("averaged", "plain", "with") if ema else ("plain", "averaged", "without")
        raise UserError(
            f"{path} is of the {other} weights of a checkpoint, not of its {kind} ones; measure these with "
            f"sparse-detr sweep {option} --ema"
        )
    digest = setting.get("weights")
    if digest is None or not os.path.isfile(weights):
        return
    if file_digest(weights) != digest:
        raise UserError(f"{path} is of other weights than {weights}; measure these with sparse-detr sweep")


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, in hexadecimal; a file is read again only after it has changed."""
    facts = os.stat(path)
    return _digest(os.path.abspath(path), facts.st_size, facts.st_mtime_ns)


@lru_cache
def _digest(path: str, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
