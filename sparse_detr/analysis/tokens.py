"""Measures of a token selection: the tokens, attention and true boxes that it covers.

The functions take boolean masks and maps over the token sequence, (B, N), and its `Pyramid`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from sparse_detr.structures import Pyramid, Queries, TokenSelection


def kept_share(keep: Tensor, pyramid: Pyramid) -> Tensor:
    """Return the share of valid tokens that are kept, for every image and level.

    Args:
        keep: (B, N) bool, True on kept (or referenced) tokens.
        pyramid: geometry.

    Returns:
        (B, L) in [0, 1].
    """
    kept = _sum_per_level((keep & ~pyramid.padding_mask).float(), pyramid)
    return kept / pyramid.valid_sizes.prod(-1)


def covered_attention(keep: Tensor, attention_map: Tensor) -> Tensor:
    """Return the share of the decoder's attention on kept tokens: the correlation metric of Sparse DETR.

    Args:
        keep: (B, N) bool, True on kept tokens.
        attention_map: (B, N), not negative.

    Returns:
        (B,) in [0, 1]; NaN if the decoder paid no attention at all.
    """
    return (attention_map * keep).sum(-1) / attention_map.sum(-1)


def covered_attention_per_level(keep: Tensor, attention_map: Tensor, pyramid: Pyramid) -> Tensor:
    """Return `covered_attention` of every level on its own, (B, L); NaN on levels without attention."""
    levels = zip(pyramid.split(keep), pyramid.split(attention_map), strict=True)
    return torch.stack([covered_attention(kept, attention) for kept, attention in levels], -1)


def covered_boxes(keep: Tensor, boxes: Sequence[Tensor], pyramid: Pyramid) -> list[Tensor]:
    """Return for every true box whether a kept token covers it.

    A box is covered if a kept token lies on it, as `tokens_on_boxes` says.

    Args:
        keep: (B, N) bool, True on kept tokens.
        boxes: (T, 4) of every image, cxcywh in [0, 1] of the unpadded image.
        pyramid: geometry.

    Returns:
        (T,) bool of every image; the mean of all of them is the recall of the selection.
    """
    return [(tokens & keep[image]).any(1) for image, tokens in enumerate(tokens_on_boxes(boxes, pyramid))]


def tokens_on_boxes(boxes: Sequence[Tensor], pyramid: Pyramid) -> list[Tensor]:
    """Mark the tokens that lie on every true box.

    A token lies on a box that contains the centre of its cell, its border included. On a box that contains no centre of
    any level lie the tokens whose cells hold its own centre, one a level. So some token lies on every box.

    Args:
        boxes: (T, 4) of every image, cxcywh in [0, 1] of the unpadded image.
        pyramid: geometry.

    Returns:
        (T, N) bool of every image; False on padding.
    """
    valid, centers = ~pyramid.padding_mask, pyramid.centers(torch.float32)
    cells, sizes = pyramid.cells[:, 1:].flip(-1), pyramid.token_valid_sizes.flip(-1)
    found = []
    for image, image_boxes in enumerate(boxes):
        middle, half = image_boxes[:, None, :2], image_boxes[:, None, 2:] / 2  # (T, 1, 2)
        inside = ((centers[image] - middle).abs() <= half).all(-1) & valid[image]
        last = sizes[image] - 1
        holding = (middle * sizes[image]).floor().long().clamp(min=0).minimum(last)  # (T, N, 2)
        around = (holding == cells).all(-1) & valid[image]
        found.append(torch.where(inside.any(1, keepdim=True), inside, around))
    return found


def referenced_tokens(sampling_locations: Tensor, pyramid: Pyramid) -> Tensor:
    """Mark the tokens that a sample of the deformable attention falls on (Sparse DETR, appendix A.9).

    Every sample marks the one cell it lies in, not the four that it is interpolated from. `kept_share` of the result is
    the referenced-token ratio.

    Args:
        sampling_locations: (B, ..., L, P, 2) as (x, y) in [0, 1] of the padded levels, for any number of layers,
            queries and heads.
        pyramid: geometry.

    Returns:
        (B, N) bool; False on padding.
    """
    levels = []
    for level, (height, width) in enumerate(pyramid.spatial_shapes):
        locations = sampling_locations[..., level, :, :].flatten(1, -2)
        cells = (locations * locations.new_tensor([width, height])).floor()
        column, row = cells.unbind(-1)
        hit = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        index = torch.where(hit, row * width + column, 0).long()
        hits = hit.new_zeros(hit.shape[0], height * width, dtype=torch.long).scatter_add(1, index, hit.long())
        levels.append(hits > 0)
    return torch.cat(levels, 1) & ~pyramid.padding_mask


def object_tokens(selection: TokenSelection, rows: dict[int, Tensor]) -> Tensor | None:
    """Mark the tokens that attended to each other in the last encoder layer that has object tokens (Focus-DETR, 3.2).

    Args:
        selection: what the encoder refined.
        rows: of its layers, as `watch_object_rows` collects them.

    Returns:
        (B, N) bool; None for an encoder without object tokens.
    """
    if not rows:
        return None
    last = max(rows)
    kept = selection.at_layer(last)
    chosen = torch.zeros_like(kept.valid).scatter(1, rows[last], True) & kept.valid
    return torch.zeros_like(selection.keep).scatter(1, kept.indices, chosen)


@contextmanager
def watch_object_rows(encoder: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect the object rows (B, J) of every encoder layer by its number, while the block runs."""
    rows: dict[int, Tensor] = {}

    def watch(number: int, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        # Called with (rows, source, pyramid, proposals), see `DeformableEncoderLayer`.
        return layer.register_forward_pre_hook(
            lambda layer, inputs: rows.update({number: layer.object_tokens(inputs[0], inputs[3])})
        )

    with ExitStack() as stack:
        for number, layer in enumerate(encoder.layers):
            if hasattr(layer, "object_tokens"):
                stack.callback(watch(number, layer).remove)
        yield rows


@contextmanager
def watch_sampled_points(encoder: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect the points (B, S, 2) that every decoder layer's memory was sampled at, by its number, while a block runs.

    Args:
        encoder: the encoder between decoder layers; without an `InterleavedEncoder` there are no points.
    """
    points: dict[int, Tensor] = {}

    def note(encoder: nn.Module, inputs: object, options: dict[str, int], memory: object) -> None:
        sampled = getattr(memory, "points", None)
        if sampled is not None:
            points[options["layer"]] = sampled.detach()

    handle = encoder.register_forward_hook(note, with_kwargs=True)
    try:
        yield points
    finally:
        handle.remove()


@contextmanager
def watch_queries(decoder: nn.Module) -> Iterator[list[Queries]]:
    """Collect the queries that the decoder starts from, one entry a call of it, while the block runs."""
    queries: list[Queries] = []
    handle = decoder.register_forward_pre_hook(lambda decoder, inputs: queries.append(inputs[0]))
    try:
        yield queries
    finally:
        handle.remove()


def _sum_per_level(values: Tensor, pyramid: Pyramid) -> Tensor:
    """Sum (B, N) over each level: (B, L)."""
    return torch.stack([level.sum(-1) for level in pyramid.split(values)], -1)
