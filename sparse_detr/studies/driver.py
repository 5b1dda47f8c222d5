"""Run the parts of a study one after the other, go on after a stop, and report: JSON, table, picture, one sentence."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sparse_detr.analysis.tables import markdown_table
from sparse_detr.errors import UserError
from sparse_detr.files import make_folder, write_text_atomically

Result = dict[str, Any]
Results = Mapping[str, Result]
"""Key of a part -> its numbers."""


@dataclass(frozen=True)
class Conclusion:
    """What a study says about the paper.

    Args:
        agrees: whether the paper's finding holds here; None if the study cannot tell.
        finding: the paper's finding and the rule by which it is checked.
        found: the numbers that decide.
        cautions: why the answer may be wrong.
    """

    agrees: bool | None
    finding: str
    found: str
    cautions: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """The answer in one sentence, and the cautions."""
        answer = {True: "Agrees with the paper", False: "Does not agree with the paper", None: "Cannot tell"}
        text = f"{answer[self.agrees]}: {self.finding}; here {self.found}."
        return " ".join([text, *(f"Caution: {caution}." for caution in self.cautions)])


@dataclass(frozen=True)
class Study:
    """A study: its parts, and what is made of their numbers.

    Args:
        name: of the files.
        parts: key -> action that returns the numbers, which JSON can hold; run in this order.
        settings: what the numbers depend on besides the key; numbers made with others are not taken over.
        table: numbers -> header and rows.
        draw: (numbers, path) -> picture.
        conclude: numbers -> conclusion.
        made_from: key -> what the numbers of this part alone depend on, such as digests of files; a finished part that
            was made from something else is not taken over.
    """

    name: str
    parts: Mapping[str, Callable[[], Result]]
    settings: Mapping[str, Any]
    table: Callable[[Results], tuple[Sequence[str], Sequence[Sequence[str]]]]
    draw: Callable[[Results, Path], None]
    conclude: Callable[[Results], Conclusion]
    made_from: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Record:
    """The numbers of the finished parts, in a JSON file that grows with every part.

    Args:
        path: the file; it need not exist.
        study: the study.

    Raises:
        UserError: the file is no such record, or was made with other settings or from other files.
    """

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.settings = path, json.loads(json.dumps(study.settings))
        self.results: dict[str, Result] = {}
        self.made_from: dict[str, Any] = {}
        self._sources = json.loads(json.dumps(study.made_from))
        if not path.is_file():
            return
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            self.results, made_with = dict(old["results"]), dict(old["settings"])
            self.made_from = dict(old.get("made_from", {}))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is no record of a study; remove it or choose another --output") from error
        if changes := _changes(made_with, self.settings):
            raise UserError(
                f"{path} was made with other settings ({changes}); remove it, give the same options, or choose another "
                "--output"
            )
        for key in [key for key in study.parts if key in self.results]:
            if changes := _changes(self.made_from.get(key, {}), self._sources.get(key, {})):
                raise UserError(
                    f"{path} has the numbers of {key!r}, but they were made from other files ({changes}); remove it, "
                    "or choose another --output"
                )

    def add(self, key: str, result: Result) -> None:
        """Add the numbers of a part, and write the file."""
        self.results[key] = result
        if key in self._sources:
            self.made_from[key] = self._sources[key]
        self.write()

    def write(self, **more: Any) -> None:
        """Write the file."""
        content = {"settings": self.settings, "made_from": self.made_from, "results": self.results, **more}
        write_text_atomically(self.path, json.dumps(content, indent=1) + "\n")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the names of what differs, for an error; "" if nothing does."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(key if key in old else f"{key}, which was not noted then" for key in changed)


def run_study(study: Study, output: Path) -> Conclusion:
    """Run the missing parts of a study, then write `NAME.json`, `NAME.md` and `NAME.png`, and print the table.

    Args:
        study: the study.
        output: folder; finished parts in it are not run again.

    Raises:
        UserError: the folder holds another study's numbers, or a part fails.
    """
    record = Record(make_folder(output) / f"{study.name}.json", study)
    missing = [key for key in study.parts if key not in record.results]
    if done := len(study.parts) - len(missing):
        print(f"{done} of {len(study.parts)} parts are done already and are not run again", flush=True)
    seconds: list[float] = []
    for number, key in enumerate(missing):
        print(f"part {number + 1} of {len(missing)}: {key}{_eta(seconds, len(missing) - number)}", flush=True)
        start = time.monotonic()
        result = study.parts[key]()
        seconds.append(time.monotonic() - start)
        record.add(key, result)
    results = {key: record.results[key] for key in study.parts}
    conclusion = study.conclude(results)
    record.write(agrees=conclusion.agrees, conclusion=conclusion.sentence)
    study.draw(results, output / f"{study.name}.png")
    text = f"{markdown_table(*study.table(results))}\n\n![{study.name}]({study.name}.png)\n\n{conclusion.sentence}\n"
    write_text_atomically(output / f"{study.name}.md", text)
    print(f"\n{text}\nsaved as {output / study.name} with the ends json, md and png")
    return conclusion


def _eta(seconds: Sequence[float], left: int) -> str:
    if not seconds:
        return ""
    return f" (about {timedelta(seconds=round(statistics.fmean(seconds) * left))} to go)"


def grouped(results: Results, by: Sequence[str]) -> dict[tuple[Any, ...], list[Result]]:
    """Return the results with equal values of the fields `by`, such as the seeds of one setting."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results.values():
        groups.setdefault(tuple(result[name] for name in by), []).append(result)
    return groups


def mean_of(results: Sequence[Result], name: str) -> float:
    """Return the mean of a number over results."""
    return statistics.fmean(result[name] for result in results)


def spread_of(results: Sequence[Result], name: str) -> float:
    """Return the standard deviation of a number over results; 0 for one."""
    values = [result[name] for result in results]
    return statistics.stdev(values) if len(values) > 1 else 0.0
