"""A certificate of a detector: images give alone what they give in a padded batch, and each dtype what it should.

A model chooses tokens and queries by their scores. One rounded score that crosses a threshold changes a choice, and so
everything after it. Two questions are kept apart:

    numbers   every run repeats the choices of the reference (the plain model in float64, every image alone), so that
              scores, logits and boxes differ by rounding alone
    choices   what a run would have chosen by its own scores: outside of a band round the threshold it must choose the
              same; inside, the share that flips is reported. The band is twice the largest difference of the scores:
              then a token outside of it cannot flip

The allowed difference is measured too. `rounding_of` runs the reference with every weight and the output of every layer
changed at random by the rounding of a dtype (a sum of n products adds up n roundings of float32, about sqrt(n) of one);
`FACTOR` times the difference that this makes is allowed, or the rounding of the largest result, if this is more. In
float64 it is `DOUBLE`.

A convolutional backbone reads the padding at the border of an image. So a padded batch gets the backbone's maps of the
images alone, with noise in the padding; the leak of the whole model is reported beside it. That the backbone itself
mixes no images is checked in a batch without padding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparse_detr.modeling.selection import (
    AnyBudget,
    BatchCascadedBudget,
    Budget,
    LevelBudget,
    MassBudget,
    RandomScorer,
    budget_of_call,
)
from sparse_detr.structures import (
    CascadedTokens,
    DetectorOutput,
    Pyramid,
    TokenSelection,
    TopKTokens,
    geometry_dtype,
)

FACTOR = 8
"""A layer is several operations, each of which rounds; `rounding_of` changes the output of a layer once."""
DOUBLE = 1e-9
DRAWS = 2
NOISE = 100.0
"""Standard deviation of the noise in padding, in standard deviations of the map."""
QUANTITIES = ("scores", "logits", "boxes")
FIRST = 1e12
"""Above every score: what was chosen in an earlier run is chosen first."""

Input = dict[str, Any]
Numbers = dict[str, float]


@dataclass(frozen=True, eq=False)
class Choice:
    """A choice by score.

    Args:
        name: of what is chosen, for people.
        scores: (B, N), -inf where nothing may be chosen.
        chosen: (B, N) bool.
        levels: (N,) long, groups that are chosen from separately; None for one group.
    """

    name: str
    scores: Tensor
    chosen: Tensor
    levels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """One run of a model.

    Args:
        output: all results.
        features: the backbone's maps by name.
        indices: (B, K) of every choice that was made, in their order; those of queries count tokens, others rows.
        choices: what the scores of this run alone would choose.
    """

    output: DetectorOutput
    features: dict[str, Tensor]
    indices: list[tuple[bool, Tensor]]
    choices: list[Choice]


@dataclass
class Flips:
    """How two choices differ.

    Args:
        outside: items outside of the band that only one of them has.
        inside: items inside of the band.
        flipped: items inside of the band that only one of them has.
        band: largest width of the band, in the units of the scores.
    """

    outside: int = 0
    inside: int = 0
    flipped: int = 0
    band: float = 0.0

    def __add__(self, other: Flips) -> Flips:
        return Flips(
            self.outside + other.outside,
            self.inside + other.inside,
            self.flipped + other.flipped,
            max(self.band, other.band),
        )

    @property
    def share(self) -> float:
        """Share of the items inside of the band that flipped."""
        return self.flipped / self.inside if self.inside else 0.0


@dataclass
class Comparison:
    """The differences of two ways to run the same images.

    Args:
        what: the two ways, in words.
        numbers: largest difference by quantity.
        allowed: largest allowed difference by quantity; {} if none is demanded.
        flips: by the name of a choice.
        missing: rows of predictions or tokens that only one of them has.
        note: why nothing is demanded; "" otherwise.
    """

    what: str
    numbers: Numbers = field(default_factory=dict)
    allowed: Numbers = field(default_factory=dict)
    flips: dict[str, Flips] = field(default_factory=dict)
    missing: int = 0
    note: str = ""

    def add(self, other: Comparison) -> None:
        """Take over the larger differences of further images."""
        for name, value in other.numbers.items():
            self.numbers[name] = max(value, self.numbers.get(name, 0.0))
        for name, flips in other.flips.items():
            self.flips[name] = self.flips.get(name, Flips()) + flips
        self.missing += other.missing

    @property
    def failures(self) -> list[str]:
        """What is outside of the tolerances, in words."""
        if self.note:
            return []
        found = [
            f"{name} differ by {value:.2g}, allowed is {self.allowed[name]:.2g}"
            for name, value in self.numbers.items()
            if not value <= self.allowed.get(name, value)
        ]
        found += [
            f"{flips.outside} {name} differ outside of the band of {flips.band:.2g} round the threshold"
            for name, flips in self.flips.items()
            if flips.outside
        ]
        return found + ([f"{self.missing} rows have no partner"] if self.missing else [])


def flips_of(found: Choice, reference: Choice) -> Flips:
    """Compare two choices among the same items; see the top of this file.

    The threshold is that of the reference, the lowest chosen score. A group whose items are all chosen, or none, has no
    threshold.
    """
    total = Flips()
    for image in range(len(reference.scores)):
        may = reference.scores[image].isfinite() & found.scores[image].isfinite()
        groups = torch.zeros_like(may, dtype=torch.long) if reference.levels is None else reference.levels
        for group in groups.unique():
            inside = may & (groups == group)
            one, other = (
                Choice(choice.name, choice.scores[image][inside], choice.chosen[image][inside])
                for choice in (found, reference)
            )
            total += _flips_of_group(one, other)
    return total


def _flips_of_group(found: Choice, reference: Choice) -> Flips:
    if not len(reference.scores):
        return Flips()
    differ = found.chosen != reference.chosen
    if reference.chosen.all() or not reference.chosen.any():
        return Flips(outside=int(differ.sum()))
    band = 2 * float((found.scores.double() - reference.scores.double()).abs().max())
    threshold = reference.scores[reference.chosen].min()
    near = (reference.scores - threshold).double().abs() <= band
    return Flips(int((differ & ~near).sum()), int(near.sum()), int((differ & near).sum()), band)


def compare(found: Trace, image: int, reference: Trace, what: str) -> Comparison:
    """Compare one image of a batch with a run of it alone, over valid tokens and queries."""
    places, shared = places_of(reference.output.pyramid, found.output.pyramid, image)
    result = Comparison(what, missing=int((~shared).sum()))
    places = places[shared]
    scores, expected = found.output.token_scores, reference.output.token_scores
    if scores is not None and expected is not None:
        result.numbers["scores"] = largest(scores[image, places], expected[0, shared])
    logits, boxes = _valid_rows(found.output, image)
    expected_logits, expected_boxes = _valid_rows(reference.output, 0)
    rows = min(len(logits), len(expected_logits))
    result.missing += abs(len(logits) - len(expected_logits))
    result.numbers["logits"] = largest(logits[:rows], expected_logits[:rows])
    result.numbers["boxes"] = largest(boxes[:rows], expected_boxes[:rows])
    for one, other in zip(found.choices, reference.choices, strict=True):
        one = replace(one, scores=one.scores[image : image + 1, places], chosen=one.chosen[image : image + 1, places])
        levels = None if other.levels is None else other.levels[shared]
        other = replace(other, scores=other.scores[:, shared], chosen=other.chosen[:, shared], levels=levels)
        result.flips[one.name] = result.flips.get(one.name, Flips()) + flips_of(one, other)
    return result


def largest(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; infinity if one of them is not a number where the other is."""
    if not found.numel():
        return 0.0
    found, expected = found.double(), expected.double()
    difference = torch.where(found == expected, 0.0, (found - expected).abs())
    return float(difference.nan_to_num(nan=float("inf")).max())


def _valid_rows(output: DetectorOutput, image: int) -> tuple[Tensor, Tensor]:
    rows = output.predictions.valid_rows[image]
    return output.predictions.logits[image][rows], output.predictions.boxes[image][rows]


def places_of(alone: Pyramid, batch: Pyramid, image: int) -> tuple[Tensor, Tensor]:
    """Return where the tokens of an image alone lie in the batch (N,), and which are valid in both (N,) bool."""
    levels, rows, columns = alone.cells.unbind(-1)
    shapes = torch.tensor(batch.spatial_shapes, device=alone.device)
    starts = torch.tensor([0, *batch.level_sizes], device=alone.device).cumsum(0)
    fits = (rows < shapes[levels, 0]) & (columns < shapes[levels, 1])
    places = torch.where(fits, starts[levels] + rows * shapes[levels, 1] + columns, 0)
    return places, fits & ~alone.padding_mask[0] & ~batch.padding_mask[image, places]


class _Replay(TorchFunctionMode):
    """Note every choice that a model makes with `topk`, and repeat those of earlier runs.

    Args:
        earlier: a trace of every image of the batch, alone; () to repeat nothing.
    """

    def __init__(self, earlier: Sequence[Trace]) -> None:
        super().__init__()
        self.earlier, self.part = earlier, ""
        self.indices: list[tuple[bool, Tensor]] = []
        self.choices: list[Choice] = []
        self.pyramid: Pyramid | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.topk, torch.Tensor.topk) or self.part == "selector":
            return func(*args, **kwargs)
        scores, *rest = args
        of_tokens = self.part == "queries"
        if of_tokens:
            chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, func(*args, **kwargs).indices, True)
            self.choices.append(Choice("queries", scores.detach(), chosen))
        if self.earlier:
            scores = chosen_first(scores, [self._earlier_rows(i, of_tokens) for i in range(len(scores))])
        result = func(scores, *rest, **kwargs)
        self.indices.append((of_tokens, result.indices))
        return result

    def _earlier_rows(self, image: int, of_tokens: bool) -> Tensor:
        trace = self.earlier[image]
        _, indices = trace.indices[len(self.indices)]
        if not of_tokens:
            return indices[0]
        assert self.pyramid is not None
        return places_of(trace.output.pyramid, self.pyramid, image)[0][indices[0]]


def chosen_first(scores: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Return (B, N) float64 scores in which the given rows (K,) of every image come first, in their order."""
    raised = scores.detach().double().clone()
    for image, own in enumerate(rows):
        raised[image, own] = FIRST - torch.arange(len(own), dtype=raised.dtype, device=raised.device)
    return raised


class _ReplayedBudget:
    """A budget that keeps what earlier runs kept, and notes what `budget` would keep."""

    keep_ratio = mean_keep_ratio = 1.0

    def __init__(self, budget: Budget, replay: _Replay) -> None:
        self.budget, self.replay = budget, replay

    def with_keep_ratio(self, keep_ratio: float) -> Budget:
        return self.budget.with_keep_ratio(keep_ratio)

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        own = self.budget.select(ranking, pyramid)
        levels = pyramid.cells[:, 0] if isinstance(self.budget, LevelBudget) else None
        ranking = ranking.detach().masked_fill(pyramid.padding_mask, float("-inf"))
        self.replay.pyramid = pyramid
        self.replay.choices += [Choice("tokens", ranking, layer.keep, levels) for layer in _layers(own)]
        return self._earlier(ranking, pyramid) if self.replay.earlier else own

    def _earlier(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        layers, rows = [], []
        for image, trace in enumerate(self.replay.earlier):
            kept = _layers(trace.output.selection)
            places = places_of(trace.output.pyramid, pyramid, image)[0]
            layers.append([int(layer.counts[0]) for layer in kept])
            rows.append(places[kept[0].indices[0][: layers[-1][0]]])
        most = [max(counts) for counts in zip(*layers, strict=True)]
        indices = chosen_first(ranking, rows).topk(most[0], dim=1).indices
        counts = [torch.tensor(count, device=ranking.device) for count in zip(*layers, strict=True)]
        if len(counts) == 1:
            return TopKTokens.of(indices, counts[0], num_tokens=ranking.shape[1])
        return CascadedTokens.nested(indices, counts, most, num_tokens=ranking.shape[1])


def _layers(selection: TokenSelection) -> Sequence[TokenSelection]:
    return selection.layers if isinstance(selection, CascadedTokens) else (selection,)


class _GivenMaps(nn.Module):
    """A backbone that returns given maps."""

    def __init__(self, maps: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, images: Tensor) -> Mapping[str, Tensor]:
        return self.maps


def trace(
    model: nn.Module,
    inputs: Sequence[Input],
    budget: AnyBudget | None,
    *,
    earlier: Sequence[Trace] = (),
    features: Mapping[str, Tensor] | None = None,
) -> Trace:
    """Run a model and note its choices.

    Args:
        model: a detector with `outputs`, in eval mode.
        inputs: of the batch.
        budget: as in a call of the model.
        earlier: a trace of every image alone, whose choices are repeated.
        features: the backbone's maps; None to compute them.
    """
    replay = _Replay(earlier)
    own = budget_of(model, budget)
    given = budget if own is None else _ReplayedBudget(own, replay)
    maps: dict[str, Tensor] = {}
    with _watched(model, replay, maps, features), torch.no_grad(), replay:
        output = model.outputs(list(inputs), given, attention_map=False)
    return Trace(output, maps, replay.indices, replay.choices)


@contextmanager
def _watched(
    model: nn.Module, replay: _Replay, maps: dict[str, Tensor], features: Mapping[str, Tensor] | None
) -> Iterator[None]:
    """Tell the replay which part runs, and take or give the backbone's maps."""
    backbone = model.backbone
    if features is not None:
        model.backbone = _GivenMaps(features)
    handles = [model.backbone.register_forward_hook(lambda module, inputs, output: maps.update(output))]
    handles.append(model.tokenizer.register_forward_hook(lambda *call: setattr(replay, "pyramid", call[2].pyramid)))
    for name in ("selector", "queries"):
        part = getattr(model, name)
        handles.append(part.register_forward_pre_hook(lambda *call, name=name: setattr(replay, "part", name)))
        handles.append(part.register_forward_hook(lambda *call: setattr(replay, "part", "")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        model.backbone = backbone


def budget_of(model: nn.Module, budget: AnyBudget | None) -> Budget | None:
    """Return the budget that a call with `budget` uses; None for a model that refines all tokens, or whole levels."""
    own = getattr(model.selector, "budget", None)
    return None if own is None else budget_of_call(budget, own)


def maps_of_batch(model: nn.Module, inputs: Sequence[Input], alone: Sequence[Trace]) -> dict[str, Tensor]:
    """Return the maps of a padded batch, each image's as if it were alone, with noise in the padding."""
    with torch.no_grad():
        padded = model.backbone(model._preprocess(list(inputs)).tensor)
    generator = torch.Generator().manual_seed(0)
    maps = {}
    for name, whole in padded.items():
        noise = torch.randn(whole.shape, generator=generator, dtype=torch.float64).to(whole)
        filled = NOISE * whole.std() * noise
        for image, trace_alone in enumerate(alone):
            own = trace_alone.features[name][0]
            filled[image, :, : own.shape[-2], : own.shape[-1]] = own
        maps[name] = filled
    return maps


def rounding_of(model: nn.Module, dtype: torch.dtype, seed: int) -> nn.Module:
    """Return a copy of a float64 model that rounds at random.

    Outputs of layers change by up to eps / 2. So do weights, or by that of float32 times the root of the number of
    products in a sum, if this is more: half precision is summed in float32.

    Args:
        model: in float64.
        dtype: whose rounding is imitated.
        seed: of the changes.
    """
    unit, single = (torch.finfo(kind).eps / 2 for kind in (dtype, torch.float32))
    generator = torch.Generator().manual_seed(seed)

    def changed(x: Any, size: float = unit) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
        return x * (1 + size * noise.to(x))

    result = copy.deepcopy(model)
    with torch.no_grad():
        for weight in result.parameters():
            products = weight[0].numel() if weight.dim() > 1 else 1
            weight.copy_(changed(weight, max(unit, single * products**0.5)))
    for module in result.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda module, inputs, output: changed(output))
    result.backbone.register_forward_pre_hook(lambda module, inputs: tuple(map(changed, inputs)))
    return result


def exceptions_of(model: nn.Module, budget: AnyBudget | None = None) -> list[str]:
    """Name the parts of a model that depend on the batch, or on chance, on purpose."""
    found = {text for module in model.modules() for text in _exceptions_of_part(module)}
    own = budget_of(model, budget)
    if isinstance(own, BatchCascadedBudget):
        found.add("BatchCascadedBudget: later layers keep a share of what the largest image of the batch keeps")
    if isinstance(own, MassBudget):
        found.add("MassBudget: how many tokens are kept depends on the sum of all scores, so no band is demanded")
    return sorted(found)


RELEASED = {
    ("mean_over", "all"): "takes the mean over padding too",
    ("padding", "lowest"): "gives padding the lowest score of the batch",
    ("padding", "ranked_lowest"): "ranks padding by the lowest score of the batch",
    ("padding", "released"): "normalises over padding too, and rounds the valid cells of a level",
    ("modulation", "released"): "interpolates the scores of padding too",
    ("surplus", "attended"): "attends to rows that only fill the batch",
    ("border", "dropped"): "lets padding become queries",
}
"""(option, value) of a part -> what the released public implementation does there."""


def _exceptions_of_part(module: nn.Module) -> Iterator[str]:
    for (name, value), text in RELEASED.items():
        if getattr(module, name, None) == value:
            yield f"{type(module).__name__}({name}={value!r}), as released, {text}"
    if isinstance(module, RandomScorer):
        yield "RandomScorer: scores are drawn anew in every call, so scores and choices are not compared"


class Certifier:
    """Compares the runs of one model at one budget.

    Args:
        reference: the plain model in float64.
        batches: inputs, in the batches that they are run in.
        budget: as in a call of the model.
        draws: how often rounding is imitated.
    """

    def __init__(
        self, reference: nn.Module, batches: Sequence[Sequence[Input]], budget: AnyBudget | None, *, draws: int
    ) -> None:
        self.reference, self.batches, self.budget, self.draws = reference, batches, budget, draws
        self.traces = [[trace(reference, [one], budget) for one in batch] for batch in batches]
        self.random = any(isinstance(module, RandomScorer) for module in reference.modules())
        self.mass = isinstance(budget_of(reference, budget), MassBudget)

    def allowed(self, dtype: torch.dtype) -> Numbers:
        """Return the allowed difference by quantity; see the top of this file."""
        if dtype == torch.float64:
            return dict.fromkeys(QUANTITIES, DOUBLE)
        whole = Comparison("")
        for seed in range(self.draws):
            rounding = rounding_of(self.reference, dtype, seed)
            whole.add(self._each(rounding, "").comparison)
        least = self._least(dtype)
        return {name: FACTOR * max(value, least.get(name, 0.0)) for name, value in whole.numbers.items()}

    def _least(self, dtype: torch.dtype) -> Numbers:
        """Return the rounding of the largest result itself; boxes have at least float32."""
        outputs = [one.output for batch in self.traces for one in batch]
        scores = [float(output.token_scores.abs().max()) for output in outputs if output.token_scores is not None]
        logits = max(float(output.predictions.logits.abs().max()) for output in outputs)
        unit, wide = torch.finfo(dtype).eps / 2, torch.finfo(geometry_dtype(dtype)).eps / 2
        return {"scores": wide * max(scores, default=0.0), "logits": unit * logits, "boxes": wide}

    def comparisons(self, model: nn.Module, allowed: Numbers) -> list[Comparison]:
        """Compare a form of the model with the reference, and its batches with its images alone.

        Args:
            model: the model in some form and dtype.
            allowed: largest difference by quantity.
        """
        each = self._each(model, "alone, against float64")
        padded, whole = Comparison("in a padded batch"), Comparison("in a padded batch, with its backbone")
        unpadded = Comparison("in a batch without padding")
        whole.note = "a backbone that reads padding changes the border; nothing is demanded"
        for batch, references, alone in zip(self.batches, self.traces, each.traces, strict=True):
            maps = maps_of_batch(model, batch, alone)
            for comparison, features in ((padded, maps), (whole, None)):
                run = trace(model, batch, self.budget, earlier=references, features=features)
                for image, expected in enumerate(alone):
                    comparison.add(compare(run, image, expected, ""))
            pair = trace(model, [batch[0], _turned(batch[0])], self.budget, earlier=[references[0], references[0]])
            unpadded.add(compare(pair, 0, alone[0], ""))
        found = [each.comparison, padded, unpadded]
        for comparison in (*found, whole):
            comparison.allowed = allowed
            self._leave_out(comparison)
        return [*found, whole]

    def _leave_out(self, comparison: Comparison) -> None:
        if self.random:
            comparison.numbers.pop("scores", None)
            comparison.flips = {name: flips for name, flips in comparison.flips.items() if name != "tokens"}
        if self.mass:
            flips = comparison.flips.get("tokens", Flips())
            comparison.flips["tokens"] = Flips(
                0, flips.inside + flips.outside, flips.flipped + flips.outside, flips.band
            )

    def _each(self, model: nn.Module, what: str) -> _Each:
        result = _Each(Comparison(what), [])
        for batch, references in zip(self.batches, self.traces, strict=True):
            runs = [
                trace(model, [one], self.budget, earlier=[reference])
                for one, reference in zip(batch, references, strict=True)
            ]
            for run, reference in zip(runs, references, strict=True):
                result.comparison.add(compare(run, 0, reference, ""))
            result.traces.append(runs)
        return result


@dataclass
class _Each:
    """Every image alone: the differences from the reference, and the traces batch by batch."""

    comparison: Comparison
    traces: list[list[Trace]]


def _turned(image: Input) -> Input:
    """Return an image of the same size with other content: turned by 180 degrees, with inverted colours."""
    pixels = image["image"]
    return {**image, "image": pixels.amax() - pixels.flip(-1, -2)}


def batches_of(inputs: Sequence[Input], size: int) -> list[list[Input]]:
    """Divide inputs into batches of mixed sizes: where all of a batch have one size, every second one is cut.

    Args:
        inputs: of the model.
        size: of a batch, 2 or more; a last batch of one image gets a smaller copy of it.
    """
    batches = [list(inputs[start : start + size]) for start in range(0, len(inputs), size)]
    if len(batches[-1]) == 1:
        batches[-1] = batches[-1] * 2
    return [_mixed(batch) for batch in batches]


def _mixed(batch: list[Input]) -> list[Input]:
    if len({tuple(one["image"].shape[-2:]) for one in batch}) > 1:
        return batch
    return [_cut(one, tall=index % 4 == 1) if index % 2 else one for index, one in enumerate(batch)]


def _cut(image: Input, *, tall: bool) -> Input:
    """Return the left, or the upper, two thirds of an image."""
    pixels = image["image"]
    height, width = pixels.shape[-2:]
    rows, columns = (height, max(2 * width // 3, 1)) if tall else (max(2 * height // 3, 1), width)
    cut = pixels[..., :rows, :columns]
    return {**image, "image": cut, "height": rows, "width": columns}
