"""One checkpoint over many budgets: AP, cost and the recall of its tokens, in a table that a later run completes.

The table is a dict that is written as JSON after every piece of work:

    {"format": 1, "setting": {...}, "machine": {...}, "disturbance": None, "entries": [
        {"budget": "0.3", "form": "plain", "scores": {"AP": ...}, "kept_share": ..., "mean_kept_share": ...,
         "token_recall": ..., "gigaflops": ..., "milliseconds": {"p50": ..., "p90": ...}, "peak_mib": ...}]}

`sparse_detr.budget_table` reads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.analysis.tokens import covered_boxes
from sparse_detr.benchmark.contestants import Contestant
from sparse_detr.benchmark.images import ImageStream
from sparse_detr.benchmark.timing import percentile
from sparse_detr.budget_table import PLAIN
from sparse_detr.errors import UserError
from sparse_detr.files import write_text_atomically

FORMAT = 1
Record = dict[str, Any]
Entry = dict[str, Any]
MEANINGS = {
    "weights": "the checkpoint is another one",
    "config_sha256": "the config has other settings than the one that was swept",
    "data_sha256": "the annotation file has other content",
}
"""What it means that a digest in the setting differs."""
FLOP_IMAGES = 8
"""Images on which FLOPs are counted; a count takes several calls of the model."""


class SelectionMeter(nn.Module):
    """A detector with a budget that notes how many tokens it kept, and which true boxes they cover.

    Args:
        model: the detector; its selector gives a `Selected`.
        budget: as in a call of it.
        true_boxes: by the `image_id` of an input, (T, 4) cxcywh in [0, 1] of the image; None for unknown ones.
    """

    def __init__(self, model: nn.Module, budget: Any, true_boxes: dict[Any, Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.budget, self.true_boxes = model, budget, true_boxes
        self.num_classes = getattr(model, "num_classes", None)
        self.class_channels = getattr(model, "class_channels", None)
        self.first_shares: list[float] = []
        self.mean_shares: list[float] = []
        self.covered: list[bool] = []

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        """Return the detections of a batch."""
        found: list[tuple[Any, Any]] = []
        handle = self.model.selector.register_forward_hook(  # type: ignore[union-attr, operator]
            lambda module, inputs, selected: found.append((inputs[0].pyramid, selected.selection))
        )
        try:
            detections = self.model(batch, budget=self.budget)
        finally:
            handle.remove()
        self._note(batch, *found[0])
        return detections

    def _note(self, batch: list[dict[str, Any]], pyramid: Any, selection: Any) -> None:
        layers = [selection.at_layer(i).counts for i in range(len(self.model.encoder.layers))]  # type: ignore[union-attr, arg-type]
        valid = (~pyramid.padding_mask).sum(-1)
        self.first_shares += (selection.counts / valid).tolist()
        self.mean_shares += (torch.stack([counts.float() for counts in layers]).mean(0) / valid).tolist()
        if self.true_boxes is not None:
            boxes = [self.true_boxes.get(image.get("image_id"), torch.zeros(0, 4)) for image in batch]
            keep = selection.keep & ~pyramid.padding_mask
            for covered in covered_boxes(keep, [b.to(keep.device) for b in boxes], pyramid):
                self.covered += covered.tolist()

    @property
    def facts(self) -> Entry:
        """Return the mean share of kept tokens in the first layer and over the layers, and the recall of true boxes."""
        return {
            "kept_share": _mean(self.first_shares),
            "mean_kept_share": _mean(self.mean_shares),
            "token_recall": _mean(self.covered),
        }


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None


def true_boxes_of(names: Sequence[str]) -> dict[Any, Tensor]:
    """Return the true boxes of Detectron2's data sets: image_id -> (T, 4) cxcywh in [0, 1] of the image."""
    from detectron2.data import DatasetCatalog
    from detectron2.structures import BoxMode

    found = {}
    for name in names:
        for record in DatasetCatalog.get(name):
            boxes = [
                BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                for annotation in record.get("annotations", [])
                if not annotation.get("iscrowd", 0)
            ]
            corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            size = corners.new_tensor([record["width"], record["height"]] * 2)
            lower, upper = (corners / size).split(2, -1)
            found[record["image_id"]] = torch.cat([(lower + upper) / 2, upper - lower], -1)
    return found


class Sweep:
    """The table of a sweep in a file, completed piece by piece.

    Args:
        path: the file; an existing one is continued.
        setting: what the numbers depend on; a table of another setting is refused.

    Raises:
        UserError: the file is of another setting, or no table of a sweep.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path = path
        self.record: Record = {"format": FORMAT, "setting": setting, "machine": {}, "disturbance": None, "entries": []}
        if path.exists():
            self.record = self._read()
            self._check(setting)

    def _read(self) -> Record:
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            record["setting"], record["entries"], record["machine"], record["disturbance"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is not a table of a sweep ({error}); remove it, or give another --output"
            ) from error
        return record

    def _check(self, setting: dict[str, Any]) -> None:
        old = self.record["setting"]
        for key, value in setting.items():
            if key not in old:
                raise UserError(
                    f"{self.path} was measured by an older version, which did not note {key}, so it may be of other "
                    "settings or data; give another --output, or remove it"
                )
            if old[key] != value:
                meaning = f" ({MEANINGS[key]})" if key in MEANINGS else ""
                raise UserError(
                    f"{self.path} is a sweep with {key} {old[key]!r}, not {value!r}{meaning}; give another --output, "
                    "or remove it"
                )

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The budget and the form of every entry."""
        return [(entry["budget"], entry["form"]) for entry in self.record["entries"]]

    def entry(self, budget: str, form: str) -> Entry:
        """Return the entry of a budget, a new one if there is none."""
        for entry in self.record["entries"]:
            if (entry["budget"], entry["form"]) == (budget, form):
                return entry
        entry = {
            "budget": budget,
            "form": form,
            "scores": None,
            "gigaflops": None,
            "milliseconds": None,
            "peak_mib": None,
        }
        self.record["entries"].append(entry)
        return entry

    def save(self) -> None:
        """Write the table, whole or not at all."""
        write_text_atomically(self.path, json.dumps(self.record, indent=1) + "\n")


def score_entries(
    sweep: Sweep,
    contestants: Sequence[Contestant],
    evaluate: Callable[[nn.Module], dict[str, float]],
    true_boxes: dict[Any, Tensor] | None,
) -> None:
    """Fill the scores of every entry that has none, and save after each.

    Args:
        sweep: the table.
        contestants: models with their budgets, named "budget, form" by `entry_name`.
        evaluate: detector -> scores of boxes.
        true_boxes: see `SelectionMeter`.
    """
    for contestant in contestants:
        entry = sweep.entry(*entry_name(contestant))
        if entry["scores"] is not None:
            continue
        meter = SelectionMeter(contestant.model, contestant.budget, true_boxes).eval()
        scores = evaluate(meter)
        entry |= meter.facts
        entry["scores"] = {name: None if math.isnan(value) else round(value, 4) for name, value in scores.items()}
        sweep.save()


def count_entries(sweep: Sweep, contestants: Sequence[Contestant], images: Sequence[dict[str, Any]]) -> None:
    """Fill the mean GFLOPs of an image of every entry that has none, and save after each.

    The inference form does the same work in fused calls, which cannot be counted, so it has the count of the plain one.

    Args:
        sweep: the table.
        contestants: models as they are, with their budgets.
        images: inputs of the model.
    """
    for contestant in contestants:
        budget, _ = entry_name(contestant)
        entries = [entry for entry in sweep.record["entries"] if entry["budget"] == budget]
        if any(entry["gigaflops"] is None for entry in entries):
            counts = [sum((contestant.gigaflops(image) or {}).values()) for image in images]
            for entry in entries:
                entry["gigaflops"] = round(sum(counts) / len(counts), 4)
            sweep.save()


def needs_times(sweep: Sweep, *, rounds: int | None, threads: int | None) -> bool:
    """Return whether an entry has no times, a busy machine disturbed them, or they are not the ones asked for.

    Args:
        sweep: the table.
        rounds, threads: that the user asks for; None for any.
    """
    machine = sweep.record["machine"]
    return (
        bool(sweep.record["disturbance"])
        or any(not entry["milliseconds"] for entry in sweep.record["entries"])
        or any(asked not in (None, machine.get(key)) for key, asked in (("rounds", rounds), ("threads", threads)))
    )


def time_entries(
    sweep: Sweep,
    contestants: Sequence[Contestant],
    images: ImageStream,
    *,
    rounds: int,
    device: str,
    load_before: float,
    allow_busy: bool,
) -> str | None:
    """Time all entries in turn on the same images, and measure their memory.

    Returns:
        Why nothing is noted: what disturbed the measurement, unless `allow_busy`; None if the times are noted.
    """
    from sparse_detr.benchmark.measure import machine_facts, measure_memory, measure_times

    entries = [sweep.entry(*entry_name(contestant)) for contestant in contestants]
    measured = measure_times(
        contestants, images, batch_sizes=[1], rounds=rounds, device=device, load_before=load_before
    )
    if measured.disturbance and not allow_busy:
        return measured.disturbance
    peaks = measure_memory(contestants, images, [1], device)
    for contestant, entry in zip(contestants, entries, strict=True):
        whole = [sum(times.values()) for times in measured.times[contestant.name][1]]
        entry["milliseconds"] = {"p50": round(percentile(whole, 50), 3), "p90": round(percentile(whole, 90), 3)}
        entry["peak_mib"] = peaks.get(contestant.name, {}).get(1)
    sweep.record["machine"] = machine_facts(device) | {"threads": torch.get_num_threads(), "rounds": rounds}
    sweep.record["disturbance"] = measured.disturbance
    sweep.save()
    return None


def sweep_contestants(model: nn.Module, rows: Sequence[tuple[str, str]]) -> list[Contestant]:
    """Return the model with every budget in its form; their names are the budget and the form.

    Args:
        model: a trained detector in eval mode.
        rows: budgets as `parse_effort` reads them, each with its form: `plain`, or a precision of the inference form.
    """
    from sparse_detr.benchmark.contestants import check_optimizable
    from sparse_detr.inference import optimize_to

    forms = dict.fromkeys(form for _, form in rows)
    if any(form != PLAIN for form in forms):
        check_optimizable(model)
    models = {form: model if form == PLAIN else optimize_to(model, form).eval() for form in forms}
    return [
        Contestant(
            f"{budget} {form}",
            "",
            models[form],
            {},
            budget=budget,
            is_trained=True,
            counts_flops=form == PLAIN,
        )
        for budget, form in rows
    ]


def entry_name(contestant: Contestant) -> tuple[str, str]:
    """Return the budget and the form of a contestant of `sweep_contestants`."""
    budget, _, form = contestant.name.rpartition(" ")
    return budget, form


def knee(points: Sequence[tuple[float, float]]) -> int | None:
    """Return the index of the knee: the point farthest above the line from the cheapest to the best point.

    Args:
        points: (cost, score).

    Returns:
        None for fewer than three points, or if none lies above the line.
    """
    if len(points) < 3:
        return None
    cheapest = min(points, key=lambda point: (point[0], -point[1]))
    best = max(points, key=lambda point: (point[1], -point[0]))
    cost, gain = best[0] - cheapest[0], best[1] - cheapest[1]
    if cost <= 0 or gain <= 0:
        return None
    heights = [(score - cheapest[1]) / gain - (price - cheapest[0]) / cost for price, score in points]
    highest = max(range(len(points)), key=heights.__getitem__)
    return highest if heights[highest] > 1e-9 else None
