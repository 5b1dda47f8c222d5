"""Token recall: how many of the tokens that lie on a true box the encoder refines.

A token is selected if at least one encoder layer refines it. Of a selection by score these are the tokens of the first
layer, since later layers keep a part of them; of a selection of levels with layers that refine all, all tokens.

Which tokens lie on a box says `tokens.tokens_on_boxes`. Then

- the *share* of a box is the share of its tokens that are selected, over all levels or of one level;
- a box is *hit* if at least one of its tokens, on any level, is selected.

A level without tokens on a box has no share of it (NaN). A box smaller than every cell has one token a level: the one
whose cell holds its centre. Tokens on padding never count. Where every token is selected, every share is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_detr.analysis.tokens import (
    covered_attention,
    covered_attention_per_level,
    tokens_on_boxes,
)
from sparse_detr.structures import DetectorOutput, Pyramid, Targets, TokenSelection


@dataclass(frozen=True, eq=False)
class TokenRecall:
    """The tokens on the true boxes of one image.

    Args:
        on_box: (T, L) long, number of tokens that lie on every box, by level.
        selected: (T, L) long, how many of them are selected.
    """

    on_box: Tensor
    selected: Tensor

    @property
    def share(self) -> Tensor:
        """(T,) share of the tokens on a box that are selected, in [0, 1]."""
        return self.selected.sum(1) / self.on_box.sum(1)

    @property
    def share_of_levels(self) -> Tensor:
        """(T, L) the same of every level; NaN on levels without tokens on the box."""
        return self.selected / self.on_box

    @property
    def is_hit(self) -> Tensor:
        """(T,) bool, whether any token on the box is selected."""
        return self.selected.any(1)


def token_recall(selected: Tensor, boxes: Sequence[Tensor], pyramid: Pyramid) -> list[TokenRecall]:
    """Count the tokens on every true box, and those of them that are selected.

    Args:
        selected: (B, N) bool, True on selected tokens; see `selected_tokens`.
        boxes: (T, 4) of every image, cxcywh in [0, 1] of the unpadded image.
        pyramid: geometry.

    Returns:
        one `TokenRecall` an image.
    """
    return [
        TokenRecall(_per_level(tokens, pyramid), _per_level(tokens & selected[image], pyramid))
        for image, tokens in enumerate(tokens_on_boxes(boxes, pyramid))
    ]


def selected_tokens(selection: TokenSelection, pyramid: Pyramid) -> Tensor:
    """Return (B, N) bool: True on tokens that at least one encoder layer refines."""
    if any(getattr(selection, "full", ())):  # some layers refine all tokens, see `CoarseTokens`
        return ~pyramid.padding_mask
    return selection.keep


@torch.no_grad()
def selection_metrics(output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, float]:
    """Return what a training logs of its token selection, by name; means over the images or boxes of the batch.

    - `kept_share`: share of the valid tokens that are selected.
    - `recall`: share of the true boxes that a selected token hits; missing without true boxes.
    - `box_share`: mean share of the tokens on a true box that are selected; missing without true boxes.
    - `correlation`, `correlation_level1`, ...: share of the decoder's attention on selected tokens, of all levels and
      of each: the correlation of Sparse DETR. Missing where the training computes no attention map, and on levels
      without attention. The public implementation also counts the rows that only fill the batch; this does not.

    Nothing random is drawn, and no gradient is kept.
    """
    selected = selected_tokens(output.selection, output.pyramid)
    found = {"kept_share": selected.sum(1) / (~output.pyramid.padding_mask).sum(1)}
    recalls = token_recall(selected, [target.boxes for target in targets], output.pyramid)
    found["recall"] = torch.cat([recall.is_hit for recall in recalls]).float()
    found["box_share"] = torch.cat([recall.share for recall in recalls])
    if output.attention_map is not None:
        attention = output.attention_map
        found["correlation"] = covered_attention(selected, attention)
        levels = covered_attention_per_level(selected, attention, output.pyramid)
        found |= {f"correlation_level{number}": level for number, level in enumerate(levels.unbind(1), start=1)}
    means = torch.stack([values.float().nanmean() for values in found.values()]).tolist()  # one copy to the host
    return {name: mean for name, mean in zip(found, means, strict=True) if mean == mean}  # without NaN


def _per_level(tokens: Tensor, pyramid: Pyramid) -> Tensor:
    """Count (T, N) bool on every level: (T, L) long."""
    return torch.stack([level.sum(1) for level in pyramid.split(tokens)], 1)
