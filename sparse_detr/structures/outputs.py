"""The predictions of a detector, and the targets of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparse_detr.structures.pyramid import Pyramid
from sparse_detr.structures.selection import TokenSelection


@dataclass(frozen=True, eq=False)
class PredictionGroup:
    """The predictions of one supervised set: a decoder layer, the proposals or an encoder layer.

    Args:
        name: name of the set, such as `decoder_5`, `proposals`, `encoder_0`.
        suffix: suffix of the names of its losses: empty for the last decoder layer, `_0` ... for the others, `_enc` for
            proposals, `_enc_0` ... for encoder layers, `_dn`, `_dn_0` ... for denoising queries.
        logits: (B, Q, classes) before the sigmoid; there is no background class.
        boxes: (B, Q, 4) cxcywh in [0, 1] of the unpadded image.
        valid: (B, Q) bool, False on rows that only fill the batch; None if every row counts.
        class_agnostic: every true box has label 0, which means "an object".
        matches: for every image the matched rows and their true boxes, two long tensors of equal length; None if the
            matcher is to find them.
        repeats: number of rows that are matched with the same true box; losses are divided by it.
    """

    name: str
    suffix: str
    logits: Tensor
    boxes: Tensor
    valid: Tensor | None = None
    class_agnostic: bool = False
    matches: Sequence[tuple[Tensor, Tensor]] | None = None
    repeats: int = 1

    @property
    def valid_rows(self) -> Tensor:
        """(B, Q) bool, True on rows that count."""
        if self.valid is None:
            return torch.ones(self.logits.shape[:2], dtype=torch.bool, device=self.logits.device)
        return self.valid


@dataclass(frozen=True, eq=False)
class Targets:
    """True boxes of one image.

    Args:
        labels: (T,) long.
        boxes: (T, 4) cxcywh in [0, 1] of the unpadded image.
    """

    labels: Tensor
    boxes: Tensor


@dataclass(frozen=True, eq=False)
class DetectorOutput:
    """Everything that a detector computes for a batch.

    Args:
        groups: predictions of every supervised set; the last decoder layer is `predictions`.
        predictions: the group that detections are made from.
        pyramid: geometry of the tokens.
        selection: the tokens that the encoder refined.
        token_scores: (B, N) score of every token before the sigmoid, without meaning on padding; None for a dense
            encoder.
        attention_map: (B, N) attention of the decoder to every token, summed over layers, heads and queries (Sparse
            DETR, section 3.2); None if it was not computed.
        image_sizes: (h, w) of every image before padding.
    """

    groups: tuple[PredictionGroup, ...]
    predictions: PredictionGroup
    pyramid: Pyramid
    selection: TokenSelection
    token_scores: Tensor | None
    attention_map: Tensor | None
    image_sizes: tuple[tuple[int, int], ...]
