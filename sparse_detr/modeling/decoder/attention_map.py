"""How much attention the decoder pays to every encoder token (Sparse DETR, section 3.2 and appendix A.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from sparse_detr.layers import AttentionSamples
from sparse_detr.ops import splat_attention
from sparse_detr.structures import Pyramid


class DecoderAttentionMap(nn.Module):
    """Sum of the cross-attention that a token receives from every decoder layer, head and query.

    Args:
        alignment: `exact` adds the weight of a sample to the tokens that it was interpolated from; `released`, as the
            public implementation, to the tokens half a pixel further right and down.
    """

    pixel_offsets = {"exact": -0.5, "released": 0.0}

    def __init__(self, *, alignment: Literal["exact", "released"] = "exact"):
        super().__init__()
        self.pixel_offset = self.pixel_offsets[alignment]

    @torch.no_grad()
    def forward(self, samples: Sequence[AttentionSamples], pyramid: Pyramid, valid: Tensor | None) -> Tensor:
        """Return the (B, N) map, without gradient.

        Args:
            samples: samples of every decoder layer.
            pyramid: geometry of the tokens.
            valid: (B, Q) bool, False on queries that only fill the batch; None if all count.
        """
        locations = torch.cat([layer.locations for layer in samples], 1)
        weights = torch.cat([layer.weights for layer in samples], 1).to(locations.dtype)
        if valid is not None:
            weights = weights * valid.repeat(1, len(samples))[:, :, None, None, None]
        return splat_attention(pyramid.spatial_shapes, locations, weights, pixel_offset=self.pixel_offset)


class NoAttentionMap(nn.Module):
    """The attention map of decoders with full attention, which sample no points: None."""

    def forward(self, samples: Sequence[AttentionSamples] | None, pyramid: Pyramid, valid: Tensor | None) -> None:
        """Return None."""
