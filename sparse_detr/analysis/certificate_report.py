"""The certificate of a detector as a record for programs and as text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparse_detr.analysis.certificate import DOUBLE, FACTOR, Comparison
from sparse_detr.analysis.tables import markdown_table

Setting = Mapping[str, str]
TOLERANCES = (
    f"allowed: {DOUBLE:g} in float64; in other dtypes {FACTOR} times what the rounding of that dtype, imitated on "
    "every weight and layer of the float64 model, changes in these images. Choices: the same outside of a band round "
    "the threshold, twice as wide as the largest difference of the scores; inside, flips are counted"
)


def as_record(entries: Sequence[tuple[Setting, Comparison]], **facts: Any) -> dict[str, Any]:
    """Return all numbers, the reasons of a failure, and `passed`.

    Args:
        entries: comparisons with their settings: budget, dtype and form.
        facts: of the protocol; `exceptions` names parts that depend on the batch on purpose.
    """
    reasons = [
        f"{_name(setting)}, {comparison.what}: {failure}"
        for setting, comparison in entries
        for failure in comparison.failures
    ]
    return {
        "passed": not reasons,
        "reasons": reasons,
        **facts,
        "tolerances": TOLERANCES,
        "comparisons": [_entry(setting, comparison) for setting, comparison in entries],
    }


def _name(setting: Setting) -> str:
    return f"budget {setting['budget']}, {setting['dtype']}, {setting['form']}"


def _entry(setting: Setting, comparison: Comparison) -> dict[str, Any]:
    return {
        **setting,
        "what": comparison.what,
        "largest_difference": comparison.numbers,
        "allowed": {} if comparison.note else comparison.allowed,
        "choices": {
            name: {
                "differ_outside_band": flips.outside,
                "inside_band": flips.inside,
                "flipped_inside_band": flips.flipped,
                "band": flips.band,
            }
            for name, flips in comparison.flips.items()
        },
        "rows_without_partner": comparison.missing,
        "note": comparison.note,
        "failures": comparison.failures,
    }


def as_text(record: Mapping[str, Any]) -> str:
    """Return tables by setting, what is not compared and why, and the verdict."""
    parts, settings = [], list(dict.fromkeys(map(_key, record["comparisons"])))
    for key in settings:
        rows = [_row(entry) for entry in record["comparisons"] if _key(entry) == key]
        title = _name(dict(zip(("budget", "dtype", "form"), key, strict=True)))
        head = ["largest difference", "scores", "logits", "boxes", "tokens", "queries", ""]
        parts.append(f"{title}\n{markdown_table(head, rows)}")
    parts.append(record["tolerances"])
    parts += [f"not checked: {text}" for text in record.get("skipped", ())]
    parts += [f"depends on the batch or on chance on purpose: {text}" for text in record.get("exceptions", ())]
    parts.append("rows and padding that only fill the batch are not compared")
    return "\n\n".join([*parts, _verdict(record)])


def _key(entry: Mapping[str, Any]) -> tuple[str, ...]:
    return entry["budget"], entry["dtype"], entry["form"]


def _row(entry: Mapping[str, Any]) -> list[str]:
    cells = [entry["what"]]
    for name in ("scores", "logits", "boxes"):
        value, allowed = entry["largest_difference"].get(name), entry["allowed"].get(name)
        cells.append("-" if value is None else f"{value:.1e}" + ("" if allowed is None else f" of {allowed:.1e}"))
    for name in ("tokens", "queries"):
        flips = entry["choices"].get(name)
        cells.append("-" if flips is None else _flips(flips))
    return [*cells, "reported only" if entry["note"] else "FAIL" if entry["failures"] else "ok"]


def _flips(flips: Mapping[str, Any]) -> str:
    outside = f"{flips['differ_outside_band']} differ outside" if flips["differ_outside_band"] else "same outside"
    share = flips["flipped_inside_band"] / max(flips["inside_band"], 1)
    return f"{outside}; {share:.0%} of {flips['inside_band']} flip inside"


def _verdict(record: Mapping[str, Any]) -> str:
    if record["passed"]:
        demanded = sum(not entry["note"] for entry in record["comparisons"])
        reported = len(record["comparisons"]) - demanded
        return (
            f"passed: {demanded} comparisons of {record['images']} images are inside the tolerances; {reported} more "
            "are reported only"
        )
    lines = [f"failed: {len(record['reasons'])} numbers are outside of the tolerances"]
    lines += [f"  {reason}" for reason in record["reasons"]]
    if record.get("exceptions"):
        lines.append("  the parts named above depend on the batch or on chance on purpose and may be the cause")
    return "\n".join(lines)
