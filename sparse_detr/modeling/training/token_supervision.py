"""What the token scores learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.modeling.training.normalizer import mean_over_processes
from sparse_detr.structures import DetectorOutput, Targets, top_tokens


class NoSupervision(nn.Module):
    """Nothing to learn, or learnt elsewhere."""

    needs_attention_map = False

    def forward(self, output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return no losses."""
        return {}


class AttentionMapSupervision(nn.Module):
    """Predict which tokens the decoder attends to most: binary cross entropy to its binarised attention map.

    As many tokens of an image are positive as it keeps (Sparse DETR, section 3.2).

    Args:
        weight: of the loss.
        padding: `ignored` averages over real tokens; `negative` is the public implementation, which takes padding in
            as negatives.
    """

    needs_attention_map = True

    def __init__(self, *, weight: float = 1.0, padding: Literal["ignored", "negative"] = "ignored"):
        super().__init__()
        self.weight, self.padding = weight, padding

    def forward(self, output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """`loss_token_score`, weighted."""
        if output.token_scores is None or output.attention_map is None:
            raise ValueError(
                "token scores learn the decoder's attention map, but this model has no token scores, or a decoder with "
                "full attention, which has no such map; choose a scorer that learns something else"
            )
        mask = output.pyramid.padding_mask
        attention = output.attention_map.masked_fill(mask, -1)
        selection = output.selection
        labels = top_tokens(attention, selection.counts, rows=selection.indices.shape[1]).keep
        valid = torch.ones_like(mask) if self.padding == "negative" else ~mask
        scores = output.token_scores[valid]
        loss = F.binary_cross_entropy_with_logits(scores, labels[valid].to(scores.dtype), reduction="sum")
        return {"loss_token_score": self.weight * loss / mean_over_processes(valid.sum().to(loss.dtype))}
