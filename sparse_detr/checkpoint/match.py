"""Compare a state dict with a model, and load it for fine-tuning."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from sparse_detr.checkpoint.coco_classes import is_class_rows
from sparse_detr.errors import UserError

LISTED = 12


@dataclass(frozen=True)
class MatchReport:
    """The names in a file and in a model, sorted by whether they match.

    Args:
        matched: names in both, of equal shape.
        missing: names in the model only; they keep their initialisation.
        unexpected: names in the file only.
        misshapen: name to (shape in the file, shape in the model), where these differ.
        untied: pairs of names of one parameter of the model that have different values in the file.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    untied: tuple[tuple[str, str], ...]

    @property
    def model_share(self) -> float:
        """Return the share of the model's entries that the file fills, in [0, 1]."""
        return len(self.matched) / max(1, len(self.matched) + len(self.missing) + len(self.misshapen))

    @property
    def file_share(self) -> float:
        """Return the share of the file's entries that fit the model, in [0, 1]."""
        return len(self.matched) / max(1, len(self.matched) + len(self.unexpected) + len(self.misshapen))

    @property
    def skipped_classes(self) -> tuple[str, ...]:
        """Return the names of entries whose number of class rows differs."""
        return tuple(name for name in self.misshapen if is_class_rows(name))

    def check(self) -> None:
        """Raise a `UserError` unless the file belongs to the model; the number of class rows may differ."""
        wrong = [name for name in self.misshapen if not is_class_rows(name)]
        if wrong:
            raise UserError(f"the checkpoint belongs to another model: {len(wrong)} entries differ in shape.\n{self}")
        if self.untied:
            raise UserError(
                f"the checkpoint has separate weights where the model shares one (box_refinement?).\n{self}"
            )
        if not self.matched:
            raise UserError(
                "no entry of the checkpoint has a name of this model; public files need `sparse-detr convert` first.\n"
                f"{self}"
            )

    def __str__(self) -> str:
        shapes = [f"{name}: file {list(a)}, model {list(b)}" for name, (a, b) in self.misshapen.items()]
        untied = [f"{one} = {other} in the model, not in the file" for one, other in self.untied]
        sections = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshapen": shapes,
            "untied": untied,
        }
        counts = ", ".join(f"{len(entries)} {title}" for title, entries in sections.items())
        lines = [
            f"{len(self.matched)} matched ({self.model_share:.1%} of the model, {self.file_share:.1%} of the file), "
            f"{counts}"
        ]
        for title, entries in sections.items():
            lines += [f"  {title}: {entry}" for entry in entries[:LISTED]]
            if len(entries) > LISTED:
                lines.append(f"  {title}: ... and {len(entries) - LISTED} more")
        return "\n".join(lines)


def match_report(model: nn.Module, state_dict: Mapping[str, Tensor]) -> MatchReport:
    """Compare names, shapes and shared parameters of a state dict with those of a model."""
    expected = model.state_dict(keep_vars=True)
    common = [name for name in expected if name in state_dict]
    fits = {name: state_dict[name].shape == expected[name].shape for name in common}
    return MatchReport(
        matched=tuple(name for name in common if fits[name]),
        missing=tuple(name for name in expected if name not in state_dict),
        unexpected=tuple(name for name in state_dict if name not in expected),
        misshapen={
            name: (tuple(state_dict[name].shape), tuple(expected[name].shape)) for name in common if not fits[name]
        },
        untied=_untied(expected, {name: state_dict[name] for name in common if fits[name]}),
    )


def _untied(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[tuple[str, str], ...]:
    """Return pairs of names of one parameter with different values in the file; loading would keep the last value."""
    names_of: dict[int, list[str]] = defaultdict(list)
    for name in found:
        names_of[id(expected[name])].append(name)
    return tuple(
        (first, other)
        for first, *others in names_of.values()
        for other in others
        if not equal_values(found[first], found[other])
    )


def equal_values(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape hold the same numbers, in any precision; NaN equals NaN."""
    one, other = one.double(), other.double()
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def load_for_finetuning(model: nn.Module, state_dict: Mapping[str, Tensor]) -> MatchReport:
    """Load the entries that fit; where the number of class rows differs, the model keeps its initial values.

    Args:
        model: changed in place.
        state_dict: entries under our names.

    Returns:
        The report; `report.skipped_classes` names the entries that were skipped.

    Raises:
        UserError: nothing matches, an entry without class rows has another shape, or the file has different values for
            one parameter of the model. The model is then unchanged.
    """
    report = match_report(model, state_dict)
    report.check()
    model.load_state_dict({name: state_dict[name] for name in report.matched}, strict=False)
    return report
