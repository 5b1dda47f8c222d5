"""Denoising queries, which start from noised true boxes and need no matching (DINO, section 3.3).

A group holds a positive and a negative copy of every true box; `num_queries` limits the number of groups. If n is the
largest number of boxes of an image, groups of 2n queries stand one after the other in front of the matched queries:

    group 0: positive 0 ... n-1, negative 0 ... n-1 | group 1: positive ... | ... | matched queries

No query attends to another group, and matched queries attend to no group, so that no true box leaks into what inference
computes.
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

_NO_LABEL = -1
# Random numbers of one query: whether to change the label, the new label, four signs and four magnitudes.
_NUMBERS = (1, 1, 4, 4)


class NoDenoising(nn.Module):
    """No denoising: the queries stay unchanged."""

    def forward(self, queries: Queries, targets: Sequence[Targets]) -> Queries:
        """Return the queries."""
        return queries


@dataclass(frozen=True, eq=False)
class TrueBoxes:
    """The true boxes of a batch, padded to `n` an image.

    Args:
        labels: (B, n) long, -1 on padding.
        boxes: (B, n, 4) cxcywh, in at least float32.
        indices: (B, n) long, index of the box in the targets of its image.
    """

    labels: Tensor
    boxes: Tensor
    indices: Tensor

    @staticmethod
    def of(targets: Sequence[Targets]) -> TrueBoxes:
        """Pad all true boxes of a batch."""
        labels = pad_sequence([target.labels for target in targets], batch_first=True, padding_value=_NO_LABEL)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)
        boxes = boxes.to(torch.promote_types(boxes.dtype, torch.float32))
        indices = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
        return TrueBoxes(labels=labels, boxes=boxes, indices=indices)

    @property
    def valid(self) -> Tensor:
        """(B, n) bool, False on padding."""
        return self.labels != _NO_LABEL

    @property
    def slots(self) -> int:
        """n."""
        return self.labels.shape[1]

    def choose(self, slots: int, numbers: Tensor) -> TrueBoxes:
        """Choose at most `slots` boxes of every image, by the smallest (B, n) `numbers`; they keep their order."""
        order = numbers.masked_fill(~self.valid, torch.inf).argsort(dim=1, stable=True)
        indices = order[:, :slots].sort(1).values
        boxes = self.boxes.gather(1, indices[..., None].expand(-1, -1, 4))
        return TrueBoxes(labels=self.labels.gather(1, indices), boxes=boxes, indices=indices)


class ContrastiveDenoising(nn.Module):
    """Puts denoising queries in front: positives, which learn their true box, and negatives, which learn "no object".

    After seeding the global generator, the noise of an image does not depend on its place in the batch; only images
    with equal boxes and labels may swap their noise.

    Args:
        num_classes: number of labels to embed.
        embed_dim: C.
        num_queries: largest number of positives of an image in all groups together; there are as many negatives. It
            limits the memory: an image with more boxes denoises a random choice of them. 0 gives no denoising queries;
            their losses stay, as zeros.
        label_noise: twice the probability that a query gets a random label, which may be the true label.
        box_noise: how far a corner of a positive moves at most, as a share of half the width and height of its box;
            corners of negatives move once to twice as far.
        unused: queries in the slots of an image with fewer boxes than others: `ignored` by other queries and by the
            losses, so that an image gets the same from any batch with as many groups; or each a `negative` in the
            middle of the image, which its group attends to, as in the public implementation.
        logit_eps: limit of the logits of noised boxes, see `inverse_sigmoid`.
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
        """Put the denoising queries of the true boxes in front of the queries.

        A batch without boxes adds no queries, and has the same autograd graph.

        Raises:
            ValueError: the queries have no reference boxes, or position embeddings of their own.
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
        """Return content (B, 2Gn, C) and reference boxes (B, 2Gn, 4) from (B, G, 2, n, 10) random numbers `noise`."""
        relabel, classes, signs, magnitudes = noise.split(_NUMBERS, -1)
        labels = self._noised_labels(true.labels[:, None, None], relabel[..., 0], classes[..., 0])
        boxes = self._noised_boxes(true.boxes[:, None, None], signs, magnitudes)
        padding_mask = ~true.valid[:, None, None, :, None]
        content = self.label_embed(labels.clamp(min=0)).masked_fill(padding_mask, 0)
        references = inverse_sigmoid(boxes, self.logit_eps).sigmoid().masked_fill(padding_mask, 0.5)
        return content.flatten(1, 3), references.flatten(1, 3)

    def _noised_labels(self, labels: Tensor, relabel: Tensor, classes: Tensor) -> Tensor:
        return torch.where(relabel < self.label_noise / 2, (classes * self.num_classes).long(), labels)

    def _noised_boxes(self, boxes: Tensor, signs: Tensor, magnitudes: Tensor) -> Tensor:
        """Move the corners of (B, 1, 1, n, 4) boxes by (B, G, 2, n, 4) random numbers; cxcywh, possibly of size 0."""
        negative = torch.arange(2, device=boxes.device).view(2, 1, 1)
        half_size = boxes[..., 2:].tile(2) / 2
        shift = torch.where(signs < 0.5, -1, 1) * (magnitudes + negative) * half_size * self.box_noise
        corners = box_convert(boxes, "cxcywh", "xyxy") + shift
        return box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")

    def _valid(self, true: TrueBoxes, groups: int, queries: Queries, *, filled: bool) -> Tensor | None:
        """Return `valid` (B, Q') of all queries, None if all count; `filled`: every image has a box in every slot."""
        if queries.valid is None and (filled or self.unused == "negative"):
            return None
        denoising = true.valid if self.unused == "ignored" else torch.ones_like(true.valid)
        matched = denoising.new_ones(queries.content.shape[:2]) if queries.valid is None else queries.valid
        return torch.cat([denoising.repeat(1, 2 * groups), matched], 1)


def _check(queries: Queries) -> None:
    if queries.position is not None:
        raise ValueError(
            "the queries have position embeddings, but denoising queries have none; use a decoder that makes positions "
            "from boxes (query_position=BoxPosition) and queries whose position is None"
        )
    if queries.reference_points.shape[-1] != 4:
        raise ValueError(
            f"the queries start from points of {queries.reference_points.shape[-1]} coordinates, but denoising needs "
            "boxes of 4; use queries that start from boxes"
        )


def _random_numbers(true: TrueBoxes, sizes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Return uniform numbers in [0, 1), (B, size) for every size; those of an image do not depend on its place.

    The numbers are drawn once. Images get their rows in the order of a key of their boxes, images without boxes last.
    """
    values = torch.cat([true.boxes, true.labels[..., None]], -1).double().masked_fill(~true.valid[..., None], 0)
    weights = torch.arange(1, 1 + 5 * true.slots, device=values.device, dtype=values.dtype).sqrt()
    keys = (values.flatten(1) * weights).sum(1).masked_fill(~true.valid.any(1), torch.inf)
    rank = keys.argsort().argsort()
    # In float32 whatever the precision of the model, so that the same seed gives the same noise.
    return torch.rand(len(keys), sum(sizes), device=rank.device, dtype=torch.float32)[rank].split(sizes, 1)


def _keep(groups: int, size: int, matched: int, *, device: torch.device) -> Tensor:
    """Return (Q', Q') bool, True where the query of the row may attend to the query of the column."""
    group = torch.arange(groups, device=device).repeat_interleave(size)
    group = torch.cat([group, group.new_full((matched,), groups)])
    return (group[:, None] == group) | (group == groups)


def _matches(true: TrueBoxes, groups: int, targets: Sequence[Targets]) -> list[tuple[Tensor, Tensor]]:
    """Return for every image the rows of its positives in all groups, and their true boxes."""
    slots = torch.arange(true.slots, device=true.labels.device)
    rows = torch.arange(groups, device=slots.device)[:, None] * 2 * true.slots + slots
    counts = [min(len(target.labels), true.slots) for target in targets]
    return [
        (rows[:, :count].flatten(), indices[:count].repeat(groups))
        for count, indices in zip(counts, true.indices, strict=True)
    ]
