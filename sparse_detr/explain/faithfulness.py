"""Which tokens a detection was made from: drop or keep them, run again, and compare with as many random tokens.

A detection is searched for again after every intervention: it is the prediction of its class with the highest score
whose box has an IoU of at least 0.5 with the original box. Its score is 0 if there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from sparse_detr.analysis.tokens import referenced_tokens, tokens_on_boxes
from sparse_detr.explain.interventions import ImageRuns, Intervention, Prediction
from sparse_detr.ops import splat_attention

FOUND_IOU = 0.5
DUPLICATE_IOU = 0.7
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, eq=False)
class Target:
    """An object to search for: a detection, or a true object.

    Args:
        box: (4,) xyxy in pixels of the image.
        label: class index.
        score: of the detection; None for a true object.
        query: number of the query that made the detection; None for a true object.
        area: of a true object in pixels of the image, as its file has it; None for that of the box.
    """

    box: Tensor
    label: int
    score: float | None = None
    query: int | None = None
    area: float | None = None

    def to(self, device: torch.device) -> Target:
        """Return the object with its box on a device."""
        return replace(self, box=self.box.to(device))


def list_targets(prediction: Prediction, score_threshold: float, *, most: int | None = None) -> list[Target]:
    """Return the detections of a prediction, best first: the best class of every query.

    A detection that repeats a better one, with the same class and an IoU above 0.7, is left out.

    Args:
        prediction: of one image.
        score_threshold: detections below it are left out.
        most: the largest number of detections; None for all.
    """
    scores, labels = prediction.scores.max(1)
    found: list[Target] = []
    for query in scores.argsort(descending=True, stable=True).tolist():
        if scores[query] < max(score_threshold, 1e-6) or len(found) == most:
            break
        target = Target(prediction.boxes[query], int(labels[query]), float(scores[query]), query)
        if not any(other.label == target.label and _iou(other, target) > DUPLICATE_IOU for other in found):
            found.append(target)
    return found


def _iou(one: Target, other: Target) -> float:
    return float(box_iou(one.box[None], other.box[None]))


def search(prediction: Prediction, target: Target) -> tuple[float, float]:
    """Return the score and the IoU of the prediction that is the target; (0, 0) if there is none."""
    overlaps = box_iou(target.box[None], prediction.boxes)[0]
    scores = prediction.scores[:, target.label] * (overlaps >= FOUND_IOU)
    best = int(scores.argmax())
    score = float(scores[best])
    return (score, float(overlaps[best])) if score > 0 else (0.0, 0.0)


@dataclass(frozen=True)
class Curve:
    """What is found of a detection as more and more tokens are dropped, or refined.

    Args:
        shares: share of the tokens, from 0 to 1.
        counts: number of these tokens.
        scores, overlaps: score and IoU with the original box at every share.
    """

    shares: tuple[float, ...]
    counts: tuple[int, ...]
    scores: tuple[float, ...]
    overlaps: tuple[float, ...]


@dataclass(frozen=True)
class Comparison:
    """A curve of the explained tokens, and the curve of as many random tokens, the mean of some draws.

    Args:
        kind: `dropped`, all other tokens stay; or `alone`, no other token is refined.
        explained, random: the curves.
        lowest, highest: the lowest and the highest score of the draws at every share.
        faithfulness: see `faithfulness`.
    """

    kind: str
    explained: Curve
    random: Curve
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    faithfulness: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """Everything that was tried on one detection.

    Args:
        target: the detection.
        under: (N,) bool, tokens under its box.
        dropped: the refined tokens under its box are dropped, best token score first; None if none is refined.
        alone: only tokens under its box are refined, best token score first; None if none is.
        points: the refined tokens at its own sampling points are dropped, most attention first; None for decoders
            without sampling points.
        forced: its score if every token under its box is refined.
        attention: (N,) the attention of its query to every token; None for decoders without sampling points.
    """

    target: Target
    under: Tensor
    dropped: Comparison | None
    alone: Comparison | None
    points: Comparison | None
    forced: float
    attention: Tensor | None


def area(shares: Sequence[float], values: Sequence[float]) -> float:
    """Return the area under a curve of straight lines."""
    return float(torch.trapezoid(torch.tensor(values).double(), torch.tensor(shares).double()))


def faithfulness(kind: str, explained: Curve, random: Curve, score: float) -> float:
    """Return the area between the curve of the explained tokens and that of as many random ones.

    The scores are divided by the original score and cut at 1; x is the share of the explained tokens:

        dropped   integral over x of  random(x) - explained(x)
        alone     integral over x of  explained(x) - random(x)

    It lies in [-1, 1]. 0: these tokens matter no more than random ones. 1, for `dropped`: without the first of them the
    detection is gone, without random ones it is unchanged. Below 0: random tokens matter more.

    Args:
        kind: `dropped` or `alone`.
        explained, random: curves over the same shares.
        score: of the detection, above 0.
    """
    explained_area, random_area = (
        area(curve.shares, [min(value / score, 1.0) for value in curve.scores]) for curve in (explained, random)
    )
    return random_area - explained_area if kind == "dropped" else explained_area - random_area


class Explainer:
    """Explains detections of one image.

    Args:
        runs: of the image.
        shares: of the explained tokens that are dropped or kept, ascending, the last one 1.
        draws: number of draws of random tokens.
        seed: of the draws.
    """

    def __init__(self, runs: ImageRuns, *, shares: Sequence[float] = SHARES, draws: int = 3, seed: int = 0) -> None:
        self.runs, self.shares, self.draws, self.seed = runs, tuple(shares), draws, seed
        self.kept = runs.kept[0]
        self.levels = runs.pyramid.cells[:, 0]
        self.samples = runs.run([Intervention()], samples=True)[0].samples

    def explain(self, target: Target) -> Explanation:
        """Run all interventions on one detection, in one batch."""
        under, attention = self.tokens_under(target), self.attention_of(target)
        ranking = self._ranking(attention)
        box_tokens = _ordered(under & self.kept, ranking)
        trials = [Trial("dropped", box_tokens, self), Trial("alone", box_tokens, self)]
        if attention is not None:
            trials.append(Trial("dropped", _ordered(self._at_points(target) & self.kept, attention), self))
        edits = [edit for trial in trials for edit in trial.edits] + [Intervention(force=under)]
        predictions = iter(self.runs.run(edits))
        found = [trial.compare(predictions, target) for trial in trials]
        return Explanation(
            target=target,
            under=under,
            dropped=found[0],
            alone=found[1],
            points=found[2] if len(found) > 2 else None,
            forced=search(next(predictions), target)[0],
            attention=attention,
        )

    def drop_box(self, target: Target) -> Comparison | None:
        """Drop the refined tokens under the box alone; None if none is refined."""
        ranking = self._ranking(self.attention_of(target))
        trial = Trial("dropped", _ordered(self.tokens_under(target) & self.kept, ranking), self)
        return trial.compare(iter(self.runs.run(trial.edits)), target)

    def tokens_under(self, target: Target) -> Tensor:
        """Return (N,) bool: the tokens under the box, refined or not."""
        height, width = self.runs.size
        box = box_convert(target.box, "xyxy", "cxcywh") / target.box.new_tensor([width, height, width, height])
        return tokens_on_boxes([box[None]], self.runs.pyramid)[0][0]

    def attention_of(self, target: Target) -> Tensor | None:
        """Return (N,): the attention of the detection's query to every token, summed over layers and heads."""
        if self.samples is None or target.query is None:
            return None
        locations = torch.cat([layer.locations[:, target.query, None] for layer in self.samples], 1)
        weights = torch.cat([layer.weights[:, target.query, None] for layer in self.samples], 1)
        shapes = self.runs.pyramid.spatial_shapes
        return splat_attention(shapes, locations, weights.to(locations.dtype), pixel_offset=-0.5)[0]

    def _at_points(self, target: Target) -> Tensor:
        """Return (N,) bool: the tokens that the sampling points of the detection fall on."""
        assert self.samples is not None
        locations = torch.cat([layer.locations[:, target.query] for layer in self.samples], 1)
        return referenced_tokens(locations, self.runs.pyramid)[0]

    def _ranking(self, attention: Tensor | None) -> Tensor:
        """Return (N,): the token scores; else the attention of the detection; else the order of the tokens."""
        scores = self.runs.output.token_scores
        if scores is not None:
            return scores[0]
        return -torch.arange(len(self.kept), device=self.kept.device) if attention is None else attention


def _ordered(tokens: Tensor, ranking: Tensor) -> Tensor:
    """Return the indices of the tokens (N,) bool, highest ranking first."""
    index = tokens.nonzero()[:, 0]
    return index[ranking[index].argsort(descending=True, stable=True)]


class Trial:
    """A series of interventions: ever more of some tokens, and of as many random ones.

    Random tokens are drawn from all refined tokens of the image, as many of every level as the explained ones: only the
    place differs.

    Args:
        kind: `dropped` or `alone`, see `Comparison`.
        tokens: (S,) indices of the explained tokens, first to last.
        explainer: of the image.
    """

    def __init__(self, kind: str, tokens: Tensor, explainer: Explainer) -> None:
        self.kind, self.tokens, self.explainer = kind, tokens, explainer
        self.counts = [round(share * len(tokens)) for share in explainer.shares]
        self.orders = [tokens, *(self._draw(number) for number in range(explainer.draws))] if len(tokens) else []

    @property
    def edits(self) -> list[Intervention]:
        """One for every order and share; for `alone`, first the one without any refined token."""
        start = [self._edit(self.tokens[:0])] if self.kind == "alone" and self.orders else []
        return start + [self._edit(order[:count]) for order in self.orders for count in self.counts]

    def compare(self, predictions: Iterator[Prediction], target: Target) -> Comparison | None:
        """Take what the edits gave, and put curves together."""
        if not self.orders:
            return None
        assert target.score is not None
        start = search(next(predictions), target) if self.kind == "alone" else (target.score, 1.0)
        rows = [[start, *(search(next(predictions), target) for _ in self.counts)] for _ in self.orders]
        values = torch.tensor(rows, dtype=torch.float64)  # (1 + draws, 1 + shares, 2)
        draws = values[1:, :, 0]
        explained, random = self._curve(values[0]), self._curve(values[1:].mean(0))
        return Comparison(
            kind=self.kind,
            explained=explained,
            random=random,
            lowest=tuple(draws.amin(0).tolist()),
            highest=tuple(draws.amax(0).tolist()),
            faithfulness=faithfulness(self.kind, explained, random, target.score),
        )

    def _curve(self, values: Tensor) -> Curve:
        scores, overlaps = values.unbind(-1)
        shares, counts = (0.0, *self.explainer.shares), (0, *self.counts)
        return Curve(shares, counts, tuple(scores.tolist()), tuple(overlaps.tolist()))

    def _edit(self, index: Tensor) -> Intervention:
        chosen = torch.zeros_like(self.explainer.kept).index_fill(0, index, True)
        return Intervention(drop=chosen if self.kind == "dropped" else ~chosen)

    def _draw(self, number: int) -> Tensor:
        """Return random refined tokens in an order whose first n are of the levels of the first n explained ones."""
        generator = torch.Generator().manual_seed(self.explainer.seed * 1000 + number)
        kept, levels = self.explainer.kept, self.explainer.levels
        drawn = torch.empty_like(self.tokens)
        for level in levels[self.tokens].unique():
            pool = (kept & (levels == level)).nonzero()[:, 0]
            places = (levels[self.tokens] == level).nonzero()[:, 0]
            order = torch.randperm(len(pool), generator=generator).to(pool.device)
            drawn[places] = pool[order[: len(places)]]
        return drawn
