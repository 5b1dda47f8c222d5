"""Examine own data before a training: each part alone, the parts together, and both beside a config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sparse_detr.data.advice import (
    changes_for,
    check_evaluation_limit,
    check_objects,
    facts_of,
    objects_at_training_size,
)
from sparse_detr.data.annotations import CocoFile, boxes_per_class, class_differences
from sparse_detr.data.box_habits import check_habits
from sparse_detr.data.check import Checked, Report, check_coco
from sparse_detr.data.duplicates import find_duplicates, find_leaks
from sparse_detr.data.findings import FaultKind, Finding, errors_first
from sparse_detr.data.plan import Change, Plan
from sparse_detr.data.preset_choice import PresetChoice, choose_preset

_EXPECTED = 8  # boxes of a class that its share of the training boxes lets expect in the validation data
_UNEVEN = 4  # times as many, or as few, as expected


class Source(NamedTuple):
    """A data set to examine.

    Args:
        coco: its content.
        images: the folder that its file names start from.
        findings: of the reader of its form.
    """

    coco: CocoFile
    images: Path
    findings: Sequence[Finding] = ()


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Args:
        train: of the training data, and of what the parts have to do with each other.
        val: of the validation data; None without.
        changes: settings of the config to change.
        preset: a proposal for the augmentation; None for too few images.
    """

    train: Report
    val: Report | None
    changes: list[Change]
    preset: PresetChoice | None

    @property
    def stops_training(self) -> bool:
        return any(report.stops_training for report in self._reports)

    @property
    def is_sound(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return all(report.is_sound for report in self._reports)

    @property
    def _reports(self) -> list[Report]:
        return [self.train, *([self.val] if self.val else [])]

    def to_json(self) -> str:
        """Return the report of the training data; `validation`, `changes` and `preset` stand beside its keys."""
        content: dict[str, Any] = {
            **self.train.to_dict(),
            "validation": self.val.to_dict() if self.val else None,
            "changes": [asdict(change) for change in self.changes],
            "preset": self.preset._asdict() if self.preset else None,
            "stops_training": self.stops_training,
        }
        return json.dumps(content, indent=2)


def examine(
    train: Source,
    val: Source | None,
    plan: Plan,
    *,
    least: float = 8.0,
    decode_images: bool = True,
    max_bad_share: float = 0.01,
    for_validation: bool = False,
) -> tuple[Diagnosis, Checked]:
    """Examine the training data and the validation data for a config; return also the checked training data.

    Args:
        train: the training data, or the only data.
        val: the validation data; None without.
        plan: the numbers of the config.
        least: pixels; objects below it at the training size count as small.
        decode_images: read every image; else duplicates are not looked for.
        max_bad_share: the training stops when more than this share of the images cannot be used.
        for_validation: `train` is for evaluation only.
    """

    def check(source: Source, for_validation: bool) -> Checked:
        return check_coco(
            source.coco,
            source.images,
            num_queries=plan.num_queries,
            num_detections=plan.num_detections,
            decode_images=decode_images,
            max_bad_share=max_bad_share,
            for_validation=for_validation,
            value_range=plan.value_range,
        )

    checked = check(train, for_validation)
    checked_val = check(val, True) if val else None
    objects = objects_at_training_size(checked.coco, checked.unusable, plan)
    evaluated = checked_val or checked
    limits = check_evaluation_limit(evaluated.coco, evaluated.unusable, plan)
    findings = [
        *train.findings,
        *_alone(checked, for_validation),
        *check_objects(checked.coco, checked.unusable, objects, plan, least),
        *([] if checked_val else limits),
        *(_together(checked, checked_val) if checked_val else ()),
    ]
    report = _with(checked.report, findings, facts_of(objects, plan))
    val_report = None
    if val and checked_val:
        val_report = _with(checked_val.report, [*val.findings, *_alone(checked_val, True), *limits], {})
    parts = [(part.coco, part.unusable) for part in (checked, checked_val) if part]
    changes = changes_for(parts, objects, plan, least)
    preset = choose_preset(objects, checked.fingerprints)
    return Diagnosis(report, val_report, changes, preset), checked


def _alone(checked: Checked, for_validation: bool) -> list[Finding]:
    """Return what is wrong with a part for itself, besides the checks that training makes."""
    return [
        *check_habits(checked.coco, checked.unusable, for_validation=for_validation),
        *find_duplicates(checked.fingerprints),
    ]


def _with(report: Report, findings: Sequence[Finding], facts: dict[str, float]) -> Report:
    return replace(report, facts={**report.facts, **facts}, findings=errors_first([*report.findings, *findings]))


def _together(train: Checked, val: Checked) -> Iterator[Finding]:
    """Return what is wrong with the division into parts."""
    differences = class_differences(train.coco, val.coco)
    yield from FaultKind(
        "other-classes", "categories differ; both parts must list the same ones, used or not"
    ).findings(differences)
    yield from find_leaks(train.fingerprints, val.fingerprints)
    if not differences:
        yield from _check_coverage(train, val)


def _check_coverage(train: Checked, val: Checked) -> Iterator[Finding]:
    """Compare the shares of the classes of both parts."""
    names = train.coco.class_names
    in_train, in_val = (boxes_per_class(part.coco, part.unusable) for part in (train, val))
    of_train, of_val = sum(in_train.values()), sum(in_val.values())
    if not of_train or not of_val:
        return
    only_val = [names[number] for number in names if in_val[number] and not in_train[number]]
    missing, uneven = [], []
    for number, name in names.items():
        expected = in_train[number] / of_train * of_val
        if in_train[number] and not in_val[number]:
            missing.append(f"{name}: {in_train[number]} for training")
        elif in_val[number] and expected >= _EXPECTED and not expected / _UNEVEN < in_val[number] < expected * _UNEVEN:
            uneven.append(f"{name}: {in_val[number]} for validation, {expected:.0f} expected")
    yield from FaultKind(
        "class-only-in-validation", "classes have boxes for validation and none to train on", "warning"
    ).findings(only_val)
    yield from FaultKind(
        "class-not-in-validation",
        "classes have boxes to train on and none for validation: their AP is not defined",
        "warning",
    ).findings(missing)
    yield from FaultKind(
        "uneven-split",
        f"classes have over {_UNEVEN} times more or fewer boxes for validation than their share in the training data; "
        "divide the data by chance",
        "warning",
    ).findings(uneven)
