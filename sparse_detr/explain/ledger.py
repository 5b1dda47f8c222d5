"""Where an encoder spends its tokens, FLOPs and milliseconds: by layer, level and size of the objects.

An encoder layer does two things. It refines the kept tokens: this cost belongs to them in equal parts. And it reads all
tokens, kept or not, as the values of its attention: this cost belongs to all tokens in equal parts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from sparse_detr.analysis.tokens import tokens_on_boxes
from sparse_detr.explain.faithfulness import Target, search
from sparse_detr.explain.interventions import ImageRuns, Intervention
from sparse_detr.explain.minimal_budget import SIZES, size_of
from sparse_detr.modeling.selection import LevelBudget, TopKSelector

BACKGROUND, READING = "background", "reading all tokens"
HELD_ATTENTION = 0.95
WORTHWHILE = 0.1
MILLI = 1000


@dataclass(frozen=True)
class Cost:
    """GFLOPs and milliseconds; the time is NaN if nothing was timed."""

    gigaflops: float
    milliseconds: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.gigaflops + other.gigaflops, self.milliseconds + other.milliseconds)

    def __mul__(self, share: float) -> Cost:
        return Cost(self.gigaflops * share, self.milliseconds * share)


NOTHING = Cost(0.0, 0.0)


@dataclass(frozen=True)
class LedgerRow:
    """One level in one encoder layer.

    Args:
        layer, level: from 0; levels from fine to coarse.
        tokens: number of tokens of the level.
        kept: number of tokens that the layer refines.
        kept_by_size: of these, those under objects of every size, and those of the background; a token under several
            objects counts for the smallest.
        refining, reading: what the level costs.
    """

    layer: int
    level: int
    tokens: int
    kept: int
    kept_by_size: dict[str, int]
    refining: Cost
    reading: Cost

    @property
    def cost(self) -> Cost:
        """Of refining and reading."""
        return self.refining + self.reading


@dataclass(frozen=True)
class Ledger:
    """The account of one image.

    Args:
        rows: layer by layer, level by level.
        other_gigaflops: of the encoder outside of its layers.
    """

    rows: tuple[LedgerRow, ...]
    other_gigaflops: float

    @property
    def gigaflops(self) -> float:
        """Of the encoder."""
        return sum(row.cost.gigaflops for row in self.rows) + self.other_gigaflops

    @property
    def kept_by_size(self) -> dict[str, int]:
        """Refined tokens of all layers and levels."""
        names = self.rows[0].kept_by_size
        return {name: sum(row.kept_by_size[name] for row in self.rows) for name in names}

    @property
    def cost_by_size(self) -> dict[str, Cost]:
        """What refining the tokens under objects of every size and of the background costs, and reading all tokens."""
        costs = {
            name: sum((row.refining * (row.kept_by_size[name] / max(row.kept, 1)) for row in self.rows), NOTHING)
            for name in self.kept_by_size
        }
        return {**costs, READING: sum((row.reading for row in self.rows), NOTHING)}

    @property
    def background_share(self) -> float:
        """Share of the refined tokens that lie under no object."""
        return self.kept_by_size[BACKGROUND] / max(sum(row.kept for row in self.rows), 1)


def make_ledger(runs: ImageRuns, objects: Sequence[Target], *, rounds: int = 5) -> Ledger:
    """Account for one image.

    Args:
        runs: of the image.
        objects: true objects, or detections.
        rounds: of timing, after one for warm-up; 0 for no times.
    """
    flops = layer_gigaflops(runs.model, runs.item, runs.budget)
    times = layer_milliseconds(runs.model, runs.item, runs.budget, rounds) if rounds else _untimed(flops)
    sizes, levels = token_sizes(runs, objects), runs.pyramid.cells[:, 0]
    valid = ~runs.pyramid.padding_mask[0]
    rows = []
    for layer, kept in enumerate(runs.kept):
        for level in range(len(runs.pyramid.spatial_shapes)):
            here = (levels == level) & valid
            refined = kept & here
            kept_share, share = float(refined.sum() / kept.sum().clamp(min=1)), float(here.sum() / valid.sum())
            rows.append(
                LedgerRow(
                    layer=layer,
                    level=level,
                    tokens=int(here.sum()),
                    kept=int(refined.sum()),
                    kept_by_size={name: int((refined & mask).sum()) for name, mask in sizes.items()},
                    refining=Cost(flops.refine[layer], times.refine[layer]) * kept_share,
                    reading=Cost(flops.read[layer], times.read[layer]) * share,
                )
            )
    return Ledger(tuple(rows), flops.other)


def _untimed(flops: LayerCosts) -> LayerCosts:
    nothing = (float("nan"),) * len(flops.refine)
    return LayerCosts(nothing, nothing)


def token_sizes(runs: ImageRuns, objects: Sequence[Target]) -> dict[str, Tensor]:
    """Return (N,) bool for every size, and for the background: each token belongs to one of them."""
    height, width = runs.size
    rest = torch.ones(runs.pyramid.num_tokens, dtype=torch.bool, device=runs.pyramid.device)
    found: dict[str, Tensor] = {}
    for name, *_ in SIZES:
        boxes = [target.box for target in objects if size_of(target) == name]
        under = torch.zeros_like(rest)
        if boxes:
            stacked = torch.stack(boxes)
            relative = box_convert(stacked, "xyxy", "cxcywh") / stacked.new_tensor([width, height, width, height])
            under = tokens_on_boxes([relative], runs.pyramid)[0].any(0)
        found[name] = under & rest
        rest = rest & ~under
    return {**found, BACKGROUND: rest}


@dataclass(frozen=True)
class LayerCosts:
    """The cost of every encoder layer: of refining the kept tokens, and of reading all tokens."""

    refine: tuple[float, ...]
    read: tuple[float, ...]
    other: float = 0.0


def layer_gigaflops(model: nn.Module, item: dict[str, Any], budget: Any = None) -> LayerCosts:
    """Count the FLOPs of every encoder layer for one image; together with `other` they are those of the encoder."""
    from sparse_detr.analysis.cost import part_gigaflops

    number = len(model.encoder.layers)  # type: ignore[union-attr, arg-type]
    parts = {f"refine {i}": [f"encoder.layers.{i}"] for i in range(number)}
    parts |= {f"read {i}": [f"encoder.layers.{i}.self_attn.value_proj"] for i in range(number)}
    found = part_gigaflops(model, item, {**parts, "other": ["encoder"]}, budget)
    refine, read = (tuple(found[f"{kind} {i}"] for i in range(number)) for kind in ("refine", "read"))
    return LayerCosts(refine, read, found["other"])


@torch.no_grad()
def layer_milliseconds(model: nn.Module, item: dict[str, Any], budget: Any, rounds: int) -> LayerCosts:
    """Return the median milliseconds of every encoder layer for one image, after one round for warm-up."""
    layers = list(model.encoder.layers)  # type: ignore[union-attr, arg-type]
    readers = [getattr(getattr(layer, "self_attn", None), "value_proj", None) for layer in layers]
    refine: list[list[float]] = []
    read: list[list[float]] = []
    for _ in range(rounds + 1):
        with _stopwatch([*layers, *(reader for reader in readers if reader is not None)]) as seconds:
            model([item], budget)
        reading = [seconds.get(reader, 0.0) for reader in readers]
        read.append(reading)
        refine.append([seconds[layer] - part for layer, part in zip(layers, reading, strict=True)])
    return LayerCosts(_medians(refine[1:]), _medians(read[1:]))


def _medians(rounds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the median milliseconds of every layer, of seconds by round and layer."""
    return tuple(MILLI * statistics.median(seconds) for seconds in zip(*rounds, strict=True))


@contextmanager
def _stopwatch(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module | None, float]]:
    """Measure the seconds of a call of every module, while the block runs."""
    seconds: dict[nn.Module | None, float] = {}
    starts: dict[nn.Module, float] = {}

    def now(module: nn.Module) -> float:
        if next(module.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    with ExitStack() as stack:
        for module in modules:
            start = module.register_forward_pre_hook(lambda module, inputs: starts.update({module: now(module)}))
            end = module.register_forward_hook(
                lambda module, inputs, output: seconds.update({module: now(module) - starts[module]})
            )
            stack.callback(start.remove)
            stack.callback(end.remove)
        yield seconds


@dataclass(frozen=True)
class Proposal:
    """Shares of the levels that refine fewer tokens and lose nothing, as tried on the images themselves.

    Args:
        text: what `--budget` takes.
        tokens_now, tokens: refined tokens of a layer now and with the proposal, summed over the images.
        detections: number of detections now.
        lost: how many of them are below the threshold with the proposal.
        score_change: mean change of their scores.
    """

    text: str
    tokens_now: int
    tokens: int
    detections: int
    lost: int
    score_change: float

    @property
    def is_better(self) -> bool:
        """Whether at least a tenth of the tokens is saved, no detection is lost and scores fall by at most 0.01.

        Without a detection nothing was tried, so no proposal is better.
        """
        saves = self.tokens <= (1 - WORTHWHILE) * self.tokens_now
        return saves and self.detections > 0 and self.lost == 0 and self.score_change >= -0.01


def needed_shares(runs: ImageRuns) -> list[float] | None:
    """Return for every level the smallest share of its tokens that is as good as what is kept now.

    The rule: of the attention that the decoder pays to the kept tokens of a level, the best tokens by token score must
    hold 95 %. Where the kept tokens of a level get no attention, one token is enough.

    Returns:
        One share a level; None for models without token scores, attention map or budget.
    """
    scores, attention = runs.output.token_scores, runs.output.attention_map
    if scores is None or attention is None or not isinstance(runs.model.selector, TopKSelector):
        return None
    kept, valid = runs.kept[0], ~runs.pyramid.padding_mask[0]
    shares = []
    for level in range(len(runs.pyramid.spatial_shapes)):
        here = (runs.pyramid.cells[:, 0] == level) & valid
        index = (here & kept).nonzero()[:, 0]
        paid = attention[0, index[scores[0, index].argsort(descending=True)]].double().cumsum(0)
        needed = int((paid < HELD_ATTENTION * paid[-1]).sum()) + 1 if len(index) else 1
        shares.append(needed / int(here.sum()))
    return shares


def propose_levels(images: Sequence[tuple[ImageRuns, Sequence[Target]]], *, score_threshold: float) -> Proposal | None:
    """Propose a share for every level, the largest that an image needs by `needed_shares`, and try it.

    Args:
        images: runs and detections of every image.
        score_threshold: lowest score of a detection.

    Returns:
        The proposal, better or not; None for models that `needed_shares` does not fit.
    """
    needed = [needed_shares(runs) for runs, _ in images]
    if not needed or needed[0] is None:
        return None
    shares = [min(ceil(100 * max(level)) / 100, 1.0) for level in zip(*(one for one in needed if one), strict=True)]
    budget = LevelBudget(shares=shares)
    now, then, changes, lost = 0, 0, [], 0
    for runs, targets in images:
        edit = Intervention(budget=budget)
        now += int(runs.kept[0].sum())
        prediction = runs.run([edit])[0]
        then += int(prediction.kept[0].sum())
        for target in targets:
            assert target.score is not None
            score = search(prediction, target)[0]
            changes.append(score - target.score)
            lost += score < score_threshold
    return Proposal(str(budget), now, then, len(changes), lost, statistics.fmean(changes) if changes else 0.0)
