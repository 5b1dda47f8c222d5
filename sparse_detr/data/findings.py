"""What is wrong with a data set, in one form for the readers, the training and `check-data`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sparse_detr.errors import UserError

NUM_EXAMPLES = 5

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """A kind of fault that a data set has.

    Attributes:
        code: its name for programs.
        severity: an "error" stops the training; a "warning" lowers the scores or hides something; a "note" is only
            worth knowing.
        count: the number of items with this fault.
        message: what the fault is, and its effect or remedy.
        examples: a few of the items.
    """

    code: str
    severity: Severity
    count: int
    message: str
    examples: tuple[str, ...] = ()

    @property
    def is_error(self) -> bool:
        """Whether it stops the training."""
        return self.severity == "error"

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        where = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.count} {self.message}{where}"


class FaultKind(NamedTuple):
    """A kind of fault to search for in a file."""

    code: str
    message: str
    severity: Severity = "error"

    def findings(self, items: Sequence[object]) -> list[Finding]:
        """Return one finding with `items` as examples; [] if there are no items."""
        if not items:
            return []
        return [Finding(self.code, self.severity, len(items), self.message, tuple(map(str, items[:NUM_EXAMPLES])))]


def errors_first(findings: Iterable[Finding]) -> list[Finding]:
    """Return errors, then warnings, then notes, each in the given order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def refuse_errors(source: object, findings: Iterable[Finding]) -> None:
    """Raise one `UserError` with all errors among the findings."""
    errors = [str(finding) for finding in findings if finding.is_error]
    if errors:
        raise UserError(f"{source} cannot be used:\n  " + "\n  ".join(errors))
