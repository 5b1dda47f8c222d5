"""Losses of token scores: the attention map of the decoder (Sparse DETR, section 3.2), and a penalty (PnP-DETR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparse_detr.modeling.training.normalizer import mean_over_processes
from sparse_detr.structures import DetectorOutput, Targets, top_tokens


class NoSupervision(nn.Module):
    """No loss of token scores."""

    needs_attention_map = False

    def forward(self, output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return an empty dict."""
        return {}


class AttentionMapSupervision(nn.Module):
    """Binary cross entropy of the token scores against the binarised attention map of the decoder.

    The tokens with most attention are positive, as many of an image as the encoder keeps of it. Tokens that no query
    samples tie at 0: if more are kept than are sampled, which of these are positive is up to PyTorch's `topk`, as in
    the public implementation, and can depend on the other images of the batch.

    Args:
        weight: weight of the loss.
        padding: `ignored`: the mean over valid tokens; `negative`: padding counts as negative tokens, as in the public
            implementation.
    """

    needs_attention_map = True

    def __init__(self, *, weight: float = 1.0, padding: Literal["ignored", "negative"] = "ignored"):
        super().__init__()
        self.weight, self.padding = weight, padding

    def forward(self, output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the weighted `loss_token_score`.

        Raises:
            ValueError: the model has no token scores or no attention map.
        """
        if output.token_scores is None or output.attention_map is None:
            raise ValueError(
                "token scores learn the attention map of the decoder, but this model has no token scores, or a decoder "
                "with full attention, which has no such map; choose a scorer that learns something else"
            )
        padding_mask = output.pyramid.padding_mask
        attention = output.attention_map.masked_fill(padding_mask, -1)
        selection = output.selection
        labels = top_tokens(attention, selection.counts, rows=selection.indices.shape[1]).keep
        valid = torch.ones_like(padding_mask) if self.padding == "negative" else ~padding_mask
        scores = output.token_scores[valid]
        loss = F.binary_cross_entropy_with_logits(scores, labels[valid].to(scores.dtype), reduction="sum")
        return {"loss_token_score": self.weight * loss / mean_over_processes(valid.sum().to(loss.dtype))}


class PolledScorePenalty(nn.Module):
    """The mean score of the polled tokens, as a loss: a token keeps a high score only where detections need it.

    Args:
        weight: weight of the loss.
        rows: `valid`: the mean over the polled tokens of all processes; `all`, as in the public implementation of
            PnP-DETR: the mean of this process, also over the next best tokens that only fill the batch.
    """

    needs_attention_map = False

    def __init__(self, *, weight: float = 1e-4, rows: Literal["valid", "all"] = "valid"):
        super().__init__()
        self.weight, self.rows = weight, rows

    def forward(self, output: DetectorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Return the weighted `loss_polled_scores`.

        Raises:
            ValueError: the model has no token scores.
        """
        if output.token_scores is None:
            raise ValueError("this model has no token scores to keep low; choose a selector with a scorer")
        scores, valid = output.selection.gather(output.token_scores).sigmoid(), output.selection.valid
        if self.rows == "all":
            return {"loss_polled_scores": self.weight * scores.mean()}
        count = mean_over_processes(valid.sum().to(scores.dtype))
        return {"loss_polled_scores": self.weight * scores.masked_fill(~valid, 0).sum() / count}
