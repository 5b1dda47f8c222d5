"""Change which tokens an encoder refines, and run again: the backbone once, all changes of an image in one batch.

A token that is dropped stays in the sequence, as every token that was not selected: the decoder may read its feature
from the backbone, but no encoder layer refines it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sparse_detr.errors import UserError
from sparse_detr.layers import AttentionSamples
from sparse_detr.modeling.encoder import DeformableEncoder, LevelFeedForwardLayer
from sparse_detr.modeling.heads import Proposals
from sparse_detr.modeling.selection import AnyBudget, Budget, KeepAllTokens, Selected, TopKSelector, budget_of_call
from sparse_detr.structures import (
    AllTokens,
    CascadedTokens,
    DetectorOutput,
    Pyramid,
    Tokens,
    TokenSelection,
    TopKTokens,
    top_tokens,
)

CHUNK_BYTES = 512 * 2**20
BYTES_OF_A_CHANNEL = 96  # of a token in one run: about 24 float32 activations of an encoder layer


@dataclass(frozen=True, eq=False)
class Intervention:
    """A change of the tokens that the encoder refines in one image: layer by layer, (kept | force) & ~drop.

    Args:
        drop: (N,) bool, tokens that no layer refines; None for none.
        force: (N,) bool, tokens that every layer refines; None for none.
        budget: what is changed, as in a call of the model; None for the budget of the runs.
    """

    drop: Tensor | None = None
    force: Tensor | None = None
    budget: AnyBudget | None = None


@dataclass(frozen=True, eq=False)
class EditedBudget:
    """A `Budget` that selects what another one selects, with one intervention for every image of the batch.

    Args:
        budget: the model's own.
        edits: one an image.
    """

    budget: Budget
    edits: Sequence[Intervention]

    @property
    def keep_ratio(self) -> float:
        """Share of the first layer before the interventions."""
        return self.budget.keep_ratio

    @property
    def mean_keep_ratio(self) -> float:
        return self.budget.mean_keep_ratio

    def with_keep_ratio(self, keep_ratio: float) -> EditedBudget:
        return replace(self, budget=self.budget.with_keep_ratio(keep_ratio))

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        if len(self.edits) != pyramid.batch_size:
            raise ValueError(
                f"there are {len(self.edits)} interventions for {pyramid.batch_size} images; give one each"
            )
        bases = {id(edit.budget): budget_of_call(edit.budget, self.budget) for edit in self.edits}
        chosen = {key: budget.select(ranking, pyramid) for key, budget in bases.items()}
        selections = [chosen[id(edit.budget)] for edit in self.edits]
        depth = max(len(getattr(selection, "layers", ())) for selection in selections)
        ranking = ranking.detach()
        layers = [_best(self._kept(selections, layer), ranking) for layer in range(max(depth, 1))]
        return layers[0] if depth == 0 else _cascade(layers)

    def _kept(self, selections: Sequence[TokenSelection], layer: int) -> Tensor:
        """Return (B, N) bool: the tokens of one layer, edited."""
        kept = torch.stack([selection.at_layer(layer).keep[i] for i, selection in enumerate(selections)])
        force = torch.stack([_mask(edit.force, row) for edit, row in zip(self.edits, kept, strict=True)])
        drop = torch.stack([_mask(edit.drop, row) for edit, row in zip(self.edits, kept, strict=True)])
        return (kept | force) & ~drop


def _mask(mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if mask is None else mask.to(like.device)


def _best(kept: Tensor, ranking: Tensor) -> TopKTokens:
    """Return the kept tokens (B, N), those of the highest ranking first; at least one row, which may be surplus."""
    counts = kept.sum(1)
    return top_tokens(ranking.masked_fill(~kept, float("-inf")), counts, max(int(counts.max()), 1))


def _cascade(layers: Sequence[TopKTokens]) -> CascadedTokens:
    first = layers[0]
    return CascadedTokens(
        indices=first.indices,
        counts=first.counts,
        num_tokens=first.num_tokens,
        valid=first.valid,
        layers=tuple(layers),
    )


@dataclass(frozen=True)
class EveryToken:
    """The `Budget` of a dense encoder: all tokens."""

    keep_ratio: float = 1.0
    mean_keep_ratio: float = 1.0

    def with_keep_ratio(self, keep_ratio: float) -> EveryToken:
        if keep_ratio != 1:
            raise ValueError(f"a dense encoder refines every token; its share is 1, got {keep_ratio}")
        return self

    def select(self, ranking: Tensor, pyramid: Pyramid) -> TokenSelection:
        return AllTokens(pyramid)


class EditableSelector(nn.Module):
    """The selector of a dense encoder, which refines every token that an `EditedBudget` does not drop."""

    def forward(self, tokens: Tokens, proposals: Proposals, budget: EditedBudget | None = None) -> Selected:
        """Select every token that is not dropped."""
        if budget is None:
            return Selected(AllTokens(tokens.pyramid))
        ranking = tokens.content.new_zeros(tokens.content.shape[:2])
        return Selected(budget.select(ranking, tokens.pyramid))


def why_not_editable(model: nn.Module) -> str | None:
    """Return why no token of a model can be dropped; None if it can."""
    selector, encoder = getattr(model, "selector", None), getattr(model, "encoder", None)
    if isinstance(selector, TopKSelector):
        return None
    if not isinstance(selector, KeepAllTokens):
        return "this model selects whole levels, not tokens"
    if not isinstance(encoder, DeformableEncoder) or any(isinstance(x, LevelFeedForwardLayer) for x in encoder.layers):
        return "in the encoder of this model all tokens attend to all: it cannot leave a token out"
    return None


@contextmanager
def editable(model: nn.Module) -> Iterator[Budget]:
    """Let the model take an `EditedBudget` while the block runs; yields the model's own budget.

    A dense encoder gets another selector for this time: its model was never trained with tokens that are not refined,
    so compare what it does with as many random tokens.

    Raises:
        UserError: no token of this model can be dropped.
    """
    if reason := why_not_editable(model):
        raise UserError(f"{reason}; explain a detection of a model with a token selector or a deformable encoder")
    selector = model.selector
    if isinstance(selector, TopKSelector):
        yield selector.budget
        return
    model.selector = EditableSelector()
    try:
        yield EveryToken()
    finally:
        model.selector = selector


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model predicts for one image.

    Args:
        scores: (Q, classes) in [0, 1]; 0 on queries that only fill the batch.
        boxes: (Q, 4), xyxy in pixels of the image.
        kept: (N,) bool of every encoder layer, the tokens that it refined.
        samples: samples of every decoder layer, of a batch of one; None if they were not asked for, or of a decoder
            with full attention.
    """

    scores: Tensor
    boxes: Tensor
    kept: tuple[Tensor, ...]
    samples: tuple[AttentionSamples, ...] | None = None


class ImageRuns:
    """One image, whose tokens are made once, for any number of runs of the transformer.

    Args:
        model: a `GeneralizedDETR` in eval mode, as it is, not in its inference form.
        item: an input of the model, with `height` and `width` of the image.
        budget: what is explained, as in a call of the model; None for the model's own budget.
        chunk: the largest number of runs that go through the model together; None for as many as fit
            `CHUNK_BYTES`.

    Attributes:
        output: of the model with this budget and no intervention, with the attention map.
        tokens: what the encoder starts from.
        size: (height, width) of the image.

    Raises:
        UserError: the encoder has no layers.
    """

    def __init__(
        self, model: Any, item: dict[str, Any], *, budget: AnyBudget | None = None, chunk: int | None = None
    ) -> None:
        if not len(model.encoder.layers):
            raise UserError(
                "the encoder of this model has no layers of its own, so there are no refined tokens to explain"
            )
        self.model, self.item, self.budget = model, item, budget
        self.size = (int(item["height"]), int(item["width"]))
        with torch.no_grad(), _watch_tokens(model.tokenizer) as seen:
            self.output: DetectorOutput = model.outputs([item], budget)
        self.tokens: Tokens = seen[0]
        bytes_of_run = self.tokens.content.numel() * BYTES_OF_A_CHANNEL
        self.chunk = chunk or min(max(CHUNK_BYTES // bytes_of_run, 1), 64)

    @property
    def pyramid(self) -> Pyramid:
        """Geometry of the tokens."""
        return self.output.pyramid

    @property
    def prediction(self) -> Prediction:
        """What the model predicts without an intervention, without samples."""
        group = self.output.predictions
        return self._predictions(group.logits, group.boxes, group.valid, self.output.selection)[0]

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """(N,) bool of every encoder layer: the tokens that are refined without an intervention."""
        return self._kept(self.output.selection)[0]

    def run(self, edits: Sequence[Intervention], *, samples: bool = False) -> list[Prediction]:
        """Run the transformer once for every intervention, in batches.

        Args:
            edits: the interventions.
            samples: keep the samples of the decoder.

        Raises:
            UserError: see `editable`.
        """
        found: list[Prediction] = []
        edits = [self._of_these_runs(edit) for edit in edits]
        with torch.no_grad(), editable(self.model) as budget:
            for start in range(0, len(edits), self.chunk):
                found += self._run(EditedBudget(budget, edits[start : start + self.chunk]), samples)
        return found

    def _of_these_runs(self, edit: Intervention) -> Intervention:
        return replace(edit, budget=self.budget) if edit.budget is None else edit

    def _run(self, budget: EditedBudget, samples: bool) -> list[Prediction]:
        encoded = self.model.encode(repeat_tokens(self.tokens, len(budget.edits)), budget)
        queries = self.model.query(encoded)
        decoded = self.model.decode(queries, encoded, need_samples=samples)
        last = decoded.predictions[-1]
        found = self._predictions(last.logits, last.boxes, queries.valid, encoded.selected.selection)
        if decoded.samples is None:
            return found
        return [replace(one, samples=_samples_of(decoded.samples, i)) for i, one in enumerate(found)]

    def _kept(self, selection: TokenSelection) -> list[tuple[Tensor, ...]]:
        """Return for every image (N,) bool of every encoder layer."""
        layers = [selection.at_layer(i).keep for i in range(len(self.model.encoder.layers))]
        return list(zip(*layers, strict=True))

    def _predictions(
        self, logits: Tensor, boxes: Tensor, valid: Tensor | None, selection: TokenSelection
    ) -> list[Prediction]:
        scores = self.model.postprocess.classification.scores(logits)
        if self.model.class_channels is not None:
            scores = scores[..., self.model.class_channels]
        if valid is not None:
            scores = scores * valid[..., None]
        images = zip(scores, self._pixels(boxes), self._kept(selection), strict=True)
        return [Prediction(*image) for image in images]

    def _pixels(self, boxes: Tensor) -> Tensor:
        """Return (..., 4) xyxy in pixels, cut at the border of the image, of cxcywh in [0, 1]."""
        height, width = self.size
        limits = boxes.new_tensor([width, height])
        center, half = boxes[..., :2], boxes[..., 2:] / 2
        corners = torch.stack([center - half, center + half], -2).clamp(0, 1) * limits
        return corners.flatten(-2)


def _samples_of(samples: Sequence[AttentionSamples], image: int) -> tuple[AttentionSamples, ...]:
    rows = slice(image, image + 1)
    return tuple(AttentionSamples(layer.locations[rows], layer.weights[rows]) for layer in samples)


@contextmanager
def _watch_tokens(tokenizer: nn.Module) -> Iterator[list[Tokens]]:
    """Collect the tokens that a tokenizer makes, while the block runs."""
    seen: list[Tokens] = []
    handle = tokenizer.register_forward_hook(lambda module, inputs, tokens: seen.append(tokens))
    try:
        yield seen
    finally:
        handle.remove()


def repeat_tokens(tokens: Tokens, times: int) -> Tokens:
    """Return a batch of the same image `times` times, which shares the memory of the tokens."""

    def repeat(values: Tensor) -> Tensor:
        return values.expand(times, *values.shape[1:])

    maps, axes = tokens.maps, tokens.axes
    return replace(
        tokens,
        content=repeat(tokens.content),
        position=repeat(tokens.position),
        pyramid=repeat_pyramid(tokens.pyramid, times),
        mask=None if tokens.mask is None else repeat(tokens.mask),
        maps=None
        if maps is None
        else replace(maps, content=repeat(maps.content), pyramid=repeat_pyramid(maps.pyramid, times)),
        axes=None if axes is None else replace(axes, x=repeat(axes.x), y=repeat(axes.y)),
    )


def repeat_pyramid(pyramid: Pyramid, times: int) -> Pyramid:
    """Return the geometry of the same image `times` times."""
    return replace(
        pyramid,
        valid_sizes=pyramid.valid_sizes.expand(times, -1, -1),
        valid_counts=None if pyramid.valid_counts is None else pyramid.valid_counts * times,
        token_valid_sizes=pyramid.token_valid_sizes.expand(times, -1, -1),
        padding_mask=pyramid.padding_mask.expand(times, -1),
    )
