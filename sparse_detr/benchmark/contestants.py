"""What a benchmark times: detectors with Detectron2's contract, and the parts that their time is divided into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sparse_detr.analysis.cost import part_gigaflops
from sparse_detr.benchmark.images import Input
from sparse_detr.budget import check_fits, resolved
from sparse_detr.errors import UserError
from sparse_detr.modeling.transformer import DetectionTransformer

Batch = list[Input]

PARTS = {
    "backbone": ("backbone",),
    "tokenizer": ("tokenizer",),
    "selection": ("proposals", "selector"),
    "encoder": ("encoder", "decoder.encoder"),
    "queries": ("queries",),
    "decoder": ("decoder",),
}
"""Part -> the paths of its modules, in our models. `selection` holds the proposals, which scorers read."""


def unchanged(batch: Batch) -> Batch:
    """Return the batch as it is."""
    return batch


@dataclass(frozen=True, eq=False)
class Contestant:
    """A detector to time.

    Args:
        name: short, for tables.
        note: what a reader must know about it; "" for nothing.
        model: in eval mode; `model(batch)` returns one `{"instances": Instances}` an image.
        parts: part -> paths of modules in the model.
        budget: how many tokens to refine, an argument of the call; None for the model's own.
        prepare: turns the batch of all contestants into this one's, before the clock runs.
        is_trained: it has trained weights of the config's classes, so that its AP means something.
        parameters: number of weights; None takes those of `model`.
        counts_flops: its FLOPs can be counted; fused calls of an optimised model cannot.
    """

    name: str
    note: str
    model: nn.Module
    parts: Mapping[str, Sequence[str]]
    budget: float | str | None = None
    prepare: Callable[[Batch], Batch] = unchanged
    is_trained: bool = False
    parameters: int | None = None
    counts_flops: bool = True

    def __post_init__(self) -> None:
        if self.parameters is None:
            object.__setattr__(self, "parameters", count_parameters(self.model))

    def modules(self) -> dict[str, list[nn.Module]]:
        """Return the modules of every part."""
        return {part: [self.model.get_submodule(path) for path in paths] for part, paths in self.parts.items()}

    def detect(self, batch: Batch) -> Any:
        """Return the detections of a prepared batch."""
        with torch.no_grad():
            return self.model(batch) if self.budget is None else self.model(batch, budget=self.budget)

    def gigaflops(self, image: Input) -> dict[str, float] | None:
        """Return the GFLOPs of one image by part; None if they cannot be counted."""
        if not self.counts_flops:
            return None
        (prepared,) = self.prepare([image])
        return part_gigaflops(self.model, prepared, self.parts, self.budget)


def count_parameters(model: nn.Module) -> int:
    """Return the number of weights, frozen ones too; a shared weight counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def parts_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the parts of a model of ours, or for another one its children with weights."""
    if hasattr(model, "tokenizer") and hasattr(model, "decoder"):
        return present(model, PARTS)
    children = [name for name, child in model.named_children() if count_parameters(child)]
    return present(model, {name: (name,) for name in children})


def present(model: nn.Module, parts: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Return the parts whose modules the model has; a list of modules, which is never called, becomes its items."""
    known = dict(model.named_modules(remove_duplicate=False))
    found = {part: [path for path in paths if path in known] for part, paths in parts.items()}
    return {part: tuple(_called(known, paths)) for part, paths in found.items() if paths}


def _called(known: Mapping[str, nn.Module], paths: Sequence[str]) -> list[str]:
    return [
        item
        for path in paths
        for item in ([f"{path}.{i}" for i in range(len(known[path]))] if _is_list(known[path]) else [path])
    ]


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList)


def our_contestants(
    model: nn.Module,
    name: str,
    *,
    is_trained: bool,
    budgets: Sequence[float | str] = (),
    precisions: Sequence[str] = (),
    weights: str = "",
    ema: bool = False,
) -> list[Contestant]:
    """Return the model as it is and in inference form, each with every budget.

    Args:
        model: a detector of any config; it is put into eval mode.
        name: its name in tables.
        is_trained: it has trained weights.
        budgets: how many tokens to refine, as in a call of the model, or a time like `ms:30`, which is another budget
            for every form; () for the model's own budget.
        precisions: of `sparse_detr.inference.PRECISIONS`, one optimised model each.
        weights: checkpoint of the model, beside which the table for times lies.
        ema: the model has the averaged weights of the checkpoint.

    Raises:
        UserError: the model has no inference form, or no share of tokens to choose, or a time means no budget.
    """
    plain = Contestant(
        name, "" if is_trained else "random weights", model.eval(), parts_of(model), is_trained=is_trained
    )
    if precisions:
        check_optimizable(model)
    meanings = {
        (budget, form): resolved(budget, weights=weights, form=form, ema=ema)
        for budget in budgets
        for form in (None, *precisions)
    }
    for meaning in meanings.values():
        check_fits("--budget", meaning, model)
    forms = {None: plain} | {precision: _optimized(plain, precision) for precision in precisions}
    if not budgets:
        return list(forms.values())
    return [_with_budget(forms[form], budget, meaning) for (budget, form), meaning in meanings.items()]


def _optimized(plain: Contestant, precision: str) -> Contestant:
    from sparse_detr.inference import optimize_to

    model = optimize_to(plain.model, precision)
    return replace(
        plain,
        name=f"{plain.name}, {precision} form",
        note=", ".join(filter(None, [plain.note, "optimised; FLOPs of fused calls cannot be counted"])),
        model=model.eval(),
        parts=parts_of(model),
        counts_flops=False,
    )


def _with_budget(contestant: Contestant, budget: float | str, meaning: float | str) -> Contestant:
    kept = f"keep {100 * budget:g} %" if isinstance(budget, float) else f"keep {budget}"
    kept += "" if meaning == budget else f" = {meaning}"
    return replace(contestant, name=f"{contestant.name}, {kept}", budget=meaning)


def check_optimizable(model: nn.Module) -> None:
    """Raise a `UserError` if the model has no inference form."""
    if not isinstance(model, DetectionTransformer):
        raise UserError(
            f"--optimize has no form of a {type(model).__name__}, which is Detectron2's own model; leave --optimize out"
        )
