"""Queries that start from noised true boxes, a task without matching that a decoder learns first (DINO, section 3.3).

A group holds a positive and a negative copy of every true box; as many groups are made as the budget allows. With n
boxes in the fullest image, groups of 2n queries stand one after the other in front of the queries that are matched:

    group 0: positive 0 ... n-1, negative 0 ... n-1 | group 1: positive ... | ... | matched queries

No query attends to another group, and matched queries attend to no group: nothing leaks into what inference computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from sparse_detr.layers import inverse_sigmoid
from sparse_detr.structures import Denoising, Queries, Targets

_UNUSED_LABEL = -1
# Random numbers that one query takes: whether to relabel, the new class, four signs and four magnitudes.
_NUMBERS = (1, 1, 4, 4)


class NoDenoising(nn.Module):
    """Leaves the queries as they are."""

    def forward(self, queries: Queries, targets: Sequence[Targets]) -> Queries:
        """Return the queries."""
        return queries


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The true boxes of a batch, padded to `n` an image.

    Args:
        labels: (B, n) long, -1 behind an image's last.
        boxes: (B, n, 4) cxcywh, of at least single precision.
        indices: (B, n) long, of the box among those of its image.
    """

    labels: Tensor
    boxes: Tensor
    indices: Tensor

    @staticmethod
    def of(targets: Sequence[Targets]) -> TrueBoxes:
        """All boxes."""
        labels = pad_sequence([target.labels for target in targets], batch_first=True, padding_value=_UNUSED_LABEL)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
        indices = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        return TrueBoxes(labels=labels, boxes=boxes, indices=indices)

    @property
    def used(self) -> Tensor:
        """(B, n) bool, False on padding."""
        return self.labels != _UNUSED_LABEL

    @property
    def slots(self) -> int:
        """n."""
        return self.labels.shape[1]

    def choose(self, slots: int, numbers: Tensor) -> TrueBoxes:
        """At most `slots` boxes an image, at random by (B, n) numbers where there are more, in their own order."""
        order = numbers.masked_fill(~self.used, torch.inf).argsort(dim=1, stable=True)
        indices = order[:, :slots].sort(1).values
        boxes = self.boxes.gather(1, indices[..., None].expand(-1, -1, 4))
        return TrueBoxes(labels=self.labels.gather(1, indices), boxes=boxes, indices=indices)


class ContrastiveDenoising(nn.Module):
    """Put denoising queries in front: positives, to be moved back to their box, and negatives, to be rejected.

    With the global generator seeded, an image gets the same noise wherever it stands in a batch; images with equal
    boxes and labels may swap theirs.

    Args:
        num_classes: labels to embed.
        embed_dim: C.
        num_queries: positives of all groups together, at most, and so half of the denoising queries. It bounds memory:
            an image with more boxes, which COCO does not have at 100, denoises a random choice of as many. 0 switches
            denoising off and keeps its losses, as zeros.
        label_noise: twice the probability that a query gets a random label, which may be the true one.
        box_noise: how far a corner moves at most, in halves of the box's width and height: up to once this for
            positives, between once and twice for negatives.
        unused: the slots of images with fewer boxes than the fullest are `ignored`, by other queries and by the losses,
            so that an image gets the same from any batch with as many groups; or are each a `negative` in the middle of
            the image, seen by its group, as in the public implementation.
        logit_eps: boxes go through logits that are cut off here; see `inverse_sigmoid`.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        embed_dim: int,
        num_queries: int,
        label_noise: float,
        box_noise: float,
        logit_eps: float,
        unused: Literal["ignored", "negative"] = "ignored",
    ):
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        self.label_noise, self.box_noise = label_noise, box_noise
        self.unused, self.logit_eps = unused, logit_eps
        self.label_embed = nn.Embedding(num_classes, embed_dim)

    def forward(self, queries: Queries, targets: Sequence[Targets]) -> Queries:
        """Prepend the denoising queries; `targets` are one an image.

        A batch without boxes gives no rows, and the same graph.

        Raises:
            ValueError: the queries have no boxes to start from, or positions that do not come from these boxes.
        """
        _check(queries)
        true = TrueBoxes.of(targets)
        slots = min(true.slots, self.num_queries)
        groups = self.num_queries // slots if slots else 1
        filled = all(len(target.labels) >= slots for target in targets)
        choice, noise = _random_numbers(true, (true.slots, groups * 2 * slots * sum(_NUMBERS)))
        true = true.choose(slots, choice)
        noise = noise.view(len(targets), groups, 2, slots, sum(_NUMBERS))
        content, references = self._noised(true, noise)
        rows, matched = content.shape[1], queries.content.shape[1]
        return replace(
            queries,
            content=torch.cat([content.to(queries.content.dtype), queries.content], 1),
            reference_points=torch.cat([references.to(queries.reference_points.dtype), queries.reference_points], 1),
            valid=self._valid(true, groups, queries, filled=filled),
            keep=_keep(groups, 2 * slots, matched, device=content.device),
            denoising=Denoising(num_queries=rows, matches=_matches(true, groups, targets), repeats=groups),
        )

    def _noised(self, true: TrueBoxes, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Content (B, 2Gn, C) and reference boxes (B, 2Gn, 4) from noise (B, G, 2, n, ten random numbers)."""
        relabel, classes, signs, magnitudes = noise.split(_NUMBERS, -1)
        labels = self._noised_labels(true.labels[:, None, None], relabel[..., 0], classes[..., 0])
        boxes = self._noised_boxes(true.boxes[:, None, None], signs, magnitudes)
        unused = ~true.used[:, None, None, :, None]
        content = self.label_embed(labels.clamp(min=0)).masked_fill(unused, 0)
        references = inverse_sigmoid(boxes, self.logit_eps).sigmoid().masked_fill(unused, 0.5)
        return content.flatten(1, 3), references.flatten(1, 3)

    def _noised_labels(self, labels: Tensor, relabel: Tensor, classes: Tensor) -> Tensor:
        return torch.where(relabel < self.label_noise / 2, (classes * self.num_classes).long(), labels)

    def _noised_boxes(self, boxes: Tensor, signs: Tensor, magnitudes: Tensor) -> Tensor:
        """Move the corners of (B, 1, 1, n, 4) boxes by random numbers (B, G, 2, n, 4); cxcywh, maybe of no size."""
        negative = torch.arange(2, device=boxes.device).view(2, 1, 1)
        half_size = boxes[..., 2:].tile(2) / 2
        shift = torch.where(signs < 0.5, -1, 1) * (magnitudes + negative) * half_size * self.box_noise
        corners = box_convert(boxes, "cxcywh", "xyxy") + shift
        return box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")

    def _valid(self, true: TrueBoxes, groups: int, queries: Queries, *, filled: bool) -> Tensor | None:
        """(B, Q') of all queries, or None where all count; `filled`: no image leaves a slot unused."""
        if queries.valid is None and (filled or self.unused == "negative"):
            return None
        mine = true.used if self.unused == "ignored" else torch.ones_like(true.used)
        theirs = mine.new_ones(queries.content.shape[:2]) if queries.valid is None else queries.valid
        return torch.cat([mine.repeat(1, 2 * groups), theirs], 1)


def _check(queries: Queries) -> None:
    if queries.position is not None:
        raise ValueError(
            "the queries come with position embeddings, which denoising queries do not have; use a decoder that takes "
            "positions from its boxes (query_position=BoxPosition) and queries whose position is None"
        )
    if queries.reference_points.shape[-1] != 4:
        raise ValueError(
            f"the queries start from points of {queries.reference_points.shape[-1]} coordinates; denoising needs "
            "queries that start from boxes of 4"
        )


def _random_numbers(true: TrueBoxes, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Uniform numbers in [0, 1), (B, size) of every size, that follow the images through any order of the batch.

    Images take their rows of one draw by rank, those without boxes last.
    """
    values = torch.cat([true.boxes, true.labels[..., None]], -1).double().masked_fill(~true.used[..., None], 0)
    weights = torch.arange(1, 1 + 5 * true.slots, device=values.device, dtype=values.dtype).sqrt()
    keys = (values.flatten(1) * weights).sum(1).masked_fill(~true.used.any(1), torch.inf)
    rank = keys.argsort().argsort()
    # Of single precision in a model of any precision, so that the same seed gives the same noise.
    return torch.rand(len(keys), sum(sizes), device=rank.device, dtype=torch.float32)[rank].split(sizes, 1)


def _keep(groups: int, size: int, matched: int, *, device: torch.device) -> Tensor:
    """Return (Q', Q') bool, True where the query of the row may attend to that of the column."""
    group = torch.arange(groups, device=device).repeat_interleave(size)
    group = torch.cat([group, group.new_full((matched,), groups)])
    return (group[:, None] == group) | (group == groups)


def _matches(true: TrueBoxes, groups: int, targets: Sequence[Targets]) -> list[tuple[Tensor, Tensor]]:
    """For every image the rows of its positives in all groups, and their true boxes."""
    slots = torch.arange(true.slots, device=true.labels.device)
    rows = torch.arange(groups, device=slots.device)[:, None] * 2 * true.slots + slots
    counts = [min(len(target.labels), true.slots) for target in targets]
    return [
        (rows[:, :count].flatten(), indices[:count].repeat(groups))
        for count, indices in zip(counts, true.indices, strict=True)
    ]
